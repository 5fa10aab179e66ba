"""Every format of captioned pictures gives the same records, and names what is broken."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pocketlens.core.errors import DataError
from pocketlens.distill.data.recipe import (
    CaptionsData,
    CocoData,
    DataRecipe,
    KarpathyData,
    PicturesData,
    SplitFiles,
    WebdatasetData,
)
from pocketlens.distill.data.record import Broken, Record
from pocketlens.distill.data.sources import Foreign, read_source

NAMES = ("a.jpg", "b.jpg", "ç d.jpg")
CAPTIONS = {"a.jpg": ["a dog", "a brown dog"], "b.jpg": ["two cats"], "ç d.jpg": ["eine Möwe, am Meer", "海鸥"]}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(jpeg(seed))
    return folder


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def found(settings: Foreign, base: Path) -> tuple[dict[str, tuple[str, ...]], list[Broken]]:
    records = list(read_source(settings, base))
    good = {r.name.rpartition("/")[2]: r.captions for r in records if isinstance(r, Record)}
    return good, [r for r in records if isinstance(r, Broken)]


def listed(tmp_path: Path, name: str, **options: str) -> CaptionsData:
    return CaptionsData(name="set", splits={"train": SplitFiles(captions=name, images="images")}, **options)


def csv_rows() -> str:
    return "image,captions\n" + "".join(f'{n},"{c}"\n' for n in NAMES for c in CAPTIONS[n])


WRITERS: dict[str, Callable[[Path], object]] = {
    "list.csv": lambda p: p.write_text(csv_rows(), encoding="utf-8"),
    "list.tsv": lambda p: p.write_text(
        csv_rows().replace('"', "").replace("jpg,", "jpg\t").replace("e,c", "e\tc"), encoding="utf-8"
    ),
    "list.jsonl": lambda p: p.write_text(
        "\n".join(json.dumps({"image": n, "captions": CAPTIONS[n]}) for n in NAMES), encoding="utf-8"
    ),
    "list.parquet": lambda p: parquet.write_table(
        pa.table({"image": list(NAMES), "captions": [CAPTIONS[n] for n in NAMES]}), p
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_lists_of_every_format_give_the_same_records(name: str, tmp_path: Path, pictures: Path) -> None:
    WRITERS[name](tmp_path / name)
    good, broken = found(listed(tmp_path, name), tmp_path)
    assert good == {n: tuple(CAPTIONS[n]) for n in NAMES}
    assert broken == []


def test_a_tar_takes_the_place_of_a_folder(tmp_path: Path, pictures: Path) -> None:
    write_tar(tmp_path / "set.tar", {f"deep/{n}": (pictures / n).read_bytes() for n in NAMES})
    WRITERS["list.jsonl"](tmp_path / "list.jsonl")
    settings = CaptionsData(name="set", splits={"test": SplitFiles(captions="list.jsonl", images="set.tar")})
    records = [r for r in read_source(settings, tmp_path) if isinstance(r, Record)]
    assert {r.split for r in records} == {"test"}
    read = {r.name: r.picture().read() for r in records if not isinstance(r.picture(), Path)}  # type: ignore[union-attr]
    assert read == {n: (pictures / n).read_bytes() for n in NAMES}


def test_coco(tmp_path: Path, pictures: Path) -> None:
    images = [{"id": i, "file_name": n, "width": 64} for i, n in enumerate(NAMES)]
    texts = [{"id": 9, "image_id": i, "caption": c} for i, n in enumerate(NAMES) for c in CAPTIONS[n]]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": texts, "info": {}}))
    settings = CocoData(name="coco", splits={"train": SplitFiles(captions="coco.json", images="images")})
    assert found(settings, tmp_path)[0] == {n: tuple(CAPTIONS[n]) for n in NAMES}


@pytest.mark.parametrize(("restval", "splits"), [("train", ["train", "test", "train"]), ("drop", ["train", "test"])])
def test_karpathy(restval: str, splits: list[str], tmp_path: Path, pictures: Path) -> None:
    images = [
        {"filename": n, "split": s, "sentences": [{"raw": c, "tokens": []} for c in CAPTIONS[n]], "imgid": 1}
        for n, s in zip(NAMES, ("train", "test", "restval"), strict=True)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    settings = msgspec.convert(
        {"source": "karpathy", "name": "k", "path": "dataset.json", "images": "images", "restval": restval},
        type=DataRecipe,
    )
    assert isinstance(settings, KarpathyData)
    assert [(r.split, r.captions) for r in read_source(settings, tmp_path) if isinstance(r, Record)] == [
        (s, tuple(CAPTIONS[n])) for s, n in zip(splits, NAMES, strict=False)
    ]


def test_webdataset_as_img2dataset_writes_it(tmp_path: Path) -> None:
    members = {
        "000000000.jpg": jpeg(0),
        "000000000.txt": b"a dog",
        "000000000.json": b'{"caption": "a dog", "status": "success"}',
        "000000001.webp": jpeg(1),
        "000000001.json": json.dumps({"caption": "zwei Möwen"}).encode(),
        "000000002.json": b'{"caption": "no picture", "status": "failed_to_download"}',
        "000000003.jpg": jpeg(3),
        "000000003.txt": b"\xff\xfe broken",
        "000000004.jpg": jpeg(4),
    }
    write_tar(tmp_path / "00000.tar", members)
    write_tar(tmp_path / "00001.tar", {"000010000.png": jpeg(5), "000010000.txt": "海鸥".encode()})
    settings = WebdatasetData(name="cc", splits={"train": ("*.tar",)})
    good, broken = found(settings, tmp_path)
    assert good == {
        "000000000": ("a dog",),
        "000000001": ("zwei Möwen",),
        "000000004": (),
        "000010000": ("海鸥",),
    }
    assert [(b.name, b.reason) for b in broken] == [
        ("00000.tar/000000002", "missing"),
        ("00000.tar/000000003", "malformed"),
    ]


def test_a_folder_of_pictures_with_folders_in_it(tmp_path: Path, pictures: Path) -> None:
    (pictures / "below").mkdir()
    (pictures / "below" / "E.JPEG").write_bytes(jpeg(9))
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "loop").symlink_to(pictures)
    records = list(read_source(PicturesData(name="mine", path="images"), tmp_path))
    assert [r.name for r in records] == ["a.jpg", "b.jpg", "ç d.jpg", "below/E.JPEG"]
    assert all(isinstance(r, Record) and r.captions == () for r in records)


def test_missing_pictures_and_malformed_lines_are_named_and_the_rest_is_read(tmp_path: Path, pictures: Path) -> None:
    lines = [
        '{"image": "a.jpg", "captions": ["a dog"]}',
        '{"image": "gone.jpg", "captions": ["nothing"]}',
        "{not json",
        '{"captions": ["nobody"]}',
        '{"image": "../outside.jpg", "captions": ["no"]}',
        "",
        '{"image": "b.jpg", "captions": "one text, not a list"}',
        '{"image": "ç d.jpg", "captions": [null, 3, "x y z"]}',
    ]
    (tmp_path / "outside.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    good, broken = found(listed(tmp_path, "list.jsonl"), tmp_path)
    assert good == {"a.jpg": ("a dog",), "b.jpg": ("one text, not a list",), "ç d.jpg": ("x y z",)}
    assert sorted((b.reason, b.name) for b in broken) == [
        ("malformed", "list.jsonl:3"),
        ("malformed", "list.jsonl:3"),
        ("missing", "../outside.jpg"),
        ("missing", "gone.jpg"),
    ]


def test_a_caption_of_a_hundred_thousand_characters_is_read_whole(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "list.csv").write_text(f'image,captions\na.jpg,"{"x" * 200_000}"\n')
    assert len(found(listed(tmp_path, "list.csv"), tmp_path)[0]["a.jpg"][0]) == 200_000


def test_another_encoding_is_an_error_that_names_the_key_and_can_be_given(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "list.csv").write_bytes("image,captions\na.jpg,eine Möwe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.encoding"):
        found(listed(tmp_path, "list.csv"), tmp_path)
    good, _ = found(listed(tmp_path, "list.csv", encoding="latin-1"), tmp_path)
    assert good == {"a.jpg": ("eine Möwe",)}
    with pytest.raises(DataError, match="unknown encoding"):
        found(listed(tmp_path, "list.csv", encoding="klingon"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"picture,text\na.jpg,a dog\n", "a column image"),
        ("list.parquet", b"PAR1 no", "Parquet"),
        ("list.xlsx", b"", "ends in '.xlsx'"),
        ("gone.csv", None, "nothing at that path"),
    ],
)
def test_a_list_that_is_none_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path, pictures: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        found(listed(tmp_path, name), tmp_path)


def test_other_sources_refuse_what_is_not_theirs(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": 3}')
    for settings, message in (
        (CocoData(name="c", splits={"train": SplitFiles(captions="x.json", images="images")}), "COCO"),
        (KarpathyData(name="k", path="x.json", images="images"), "Karpathy"),
        (KarpathyData(name="k", path="x.json", images="gone"), "nothing at that path"),
        (PicturesData(name="p", path="gone"), "nothing at that path"),
        (WebdatasetData(name="w", splits={"train": ("gone-*.tar",)}), "no file of that pattern"),
    ):
        with pytest.raises(DataError, match=message):
            found(settings, tmp_path)
    write_tar(tmp_path / "packed.tar", {"a.jpg": jpeg(0)}, mode="w:gz")
    with pytest.raises(DataError, match="not compressed"):
        found(WebdatasetData(name="w", splits={"train": ("packed.tar",)}), tmp_path)
