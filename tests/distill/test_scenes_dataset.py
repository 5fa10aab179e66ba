"""Writing the built-in data set to a folder and reading it back."""

import errno
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from pocketlens.core.errors import DataError, StorageFull
from pocketlens.distill.scenes import Split, captions, read_split, sample_scene, write_dataset

SIZES: Mapping[Split, int] = {"train": 6, "test": 3}
SIDES: Mapping[Split, int] = {"train": 32, "test": 64}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_dataset(folder, split_sizes=SIZES, size_px=SIDES, seed=5, workers=1)
    return folder


def test_what_was_written_is_read_back(written: Path) -> None:
    samples = read_split(written, "test")
    assert [sample.id for sample in samples] == ["test/000000", "test/000001", "test/000002"]
    for sample in samples:
        scene = sample_scene(sample.seed, split="test")
        assert sample.captions == captions(scene)
        assert sample.objects == scene.groups
        assert sample.kinds == tuple(sorted({group.kind for group in scene.groups}))
        with Image.open(written / sample.image) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    assert len({sample.seed for sample in read_split(written, "train")}) == 6


def test_two_workers_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_dataset(
        tmp_path / "b",
        split_sizes=SIZES,
        size_px=SIDES,
        seed=5,
        workers=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert _files(tmp_path / "b") == _files(written)
    assert calls[-1] == (9, 9)
    assert calls == sorted(calls)


def test_an_interrupted_run_is_finished_and_finished_pictures_are_kept(tmp_path: Path) -> None:
    def write() -> None:
        write_dataset(tmp_path / "d", split_sizes={"val": 4}, size_px={"val": 32}, seed=1, workers=1)

    write()
    before = _files(tmp_path / "d")
    kept = (tmp_path / "d/val/000000.jpg").stat().st_mtime_ns
    (tmp_path / "d/val/000001.jpg").unlink()
    (tmp_path / "d/val/000002.jpg").write_bytes(before["val/000002.jpg"][:-40])
    (tmp_path / "d/val.jsonl").unlink()
    write()
    assert _files(tmp_path / "d") == before
    assert (tmp_path / "d/val/000000.jpg").stat().st_mtime_ns == kept


def test_more_pictures_can_be_asked_for_later(tmp_path: Path) -> None:
    for count in (2, 4):
        write_dataset(tmp_path, split_sizes={"val": count}, size_px={"val": 32}, seed=1, workers=1)
    assert len(read_split(tmp_path, "val")) == 4


def test_another_seed_or_size_or_a_strange_folder_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="delete this one"):
        write_dataset(written, split_sizes=SIZES, size_px=SIDES, seed=6, workers=1)
    with pytest.raises(DataError, match="delete this one"):
        write_dataset(written, split_sizes={"test": 3}, size_px={"test": 32}, seed=5, workers=1)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        write_dataset(tmp_path, split_sizes=SIZES, size_px=SIDES, seed=5, workers=1)
    with pytest.raises(DataError, match="folder that can be written"):
        write_dataset(tmp_path / "letter.txt", split_sizes=SIZES, size_px=SIDES, seed=5, workers=1)
    with pytest.raises(DataError, match="each split"):
        write_dataset(tmp_path / "e", split_sizes=SIZES, size_px={"train": 32}, seed=5, workers=1)


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save
    saved = 0

    def full_after_two(self: Image.Image, fp: Path, format: str | None = None, **options: int) -> None:
        nonlocal saved
        saved += 1
        if saved > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, fp, format=format, **options)

    monkeypatch.setattr(Image.Image, "save", full_after_two)
    with pytest.raises(StorageFull, match="finished work is kept"):
        write_dataset(tmp_path, split_sizes={"val": 4}, size_px={"val": 32}, seed=1, workers=1)
    assert len(list((tmp_path / "val").glob("*.jpg"))) == 2
    assert not (tmp_path / "val.jsonl").exists()
    monkeypatch.undo()
    write_dataset(tmp_path, split_sizes={"val": 4}, size_px={"val": 32}, seed=1, workers=1)
    assert len(read_split(tmp_path, "val")) == 4


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"id": 3}', b"\xff\xfe", b""])
def test_a_malformed_line_is_named(written: Path, tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "test").mkdir()
    for name in ("000000", "000001", "000002"):
        (tmp_path / f"test/{name}.jpg").write_bytes(b"")
    lines = (written / "test.jsonl").read_bytes().splitlines()
    lines[1] = bad
    (tmp_path / "test.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"test\.jsonl, line 2"):
        read_split(tmp_path, "test")


def test_a_missing_list_or_picture_is_named(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.jsonl"):
        read_split(written, "val")
    (tmp_path / "test").mkdir()
    (tmp_path / "test.jsonl").write_bytes((written / "test.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"000000\.jpg"):
        read_split(tmp_path, "test")


def test_settings_from_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode({"look": "new"}))
    with pytest.raises(DataError, match="settings"):
        write_dataset(tmp_path, split_sizes=SIZES, size_px=SIDES, seed=5, workers=1)
