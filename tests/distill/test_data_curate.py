"""Curation: what goes, what stays, and that each thing that goes is listed with its reason."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pocketlens.core.errors import DataError
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.data.cleaning import CAPTION_FAULTS, clean, fault
from pocketlens.distill.data.curate import Curation, curate
from pocketlens.distill.data.duplicates import exact_groups, near_groups, similar_groups
from pocketlens.distill.data.ledger import Dropped
from pocketlens.distill.data.recipe import CaptionsData, CurateRecipe, PicturesData, SplitFiles
from pocketlens.distill.data.sample import Sample, SampleList, as_source, read_samples


def scene(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)


def save(path: Path, picture: Image.Image, quality: int = 92) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=quality)


def source(tmp_path: Path, lists: dict[str, list[tuple[str, list[str]]]], **curate_options: object) -> CaptionsData:
    splits = {}
    for split, rows in lists.items():
        text = "\n".join(json.dumps({"image": name, "captions": captions}) for name, captions in rows)
        (tmp_path / f"{split}.list.jsonl").write_text(text)
        splits[split] = SplitFiles(captions=f"{split}.list.jsonl", images="images")
    options = CurateRecipe(**curate_options)  # type: ignore[arg-type]
    return CaptionsData(name="set", licence="CC-BY-4.0", splits=splits, curate=options)


def run(settings: CaptionsData | PicturesData, tmp_path: Path) -> tuple[Curation, dict[str, list[Dropped]], Path]:
    out = tmp_path / "data"
    report = curate(settings, out, base=tmp_path, workers=1)
    dropped: dict[str, list[Dropped]] = {}
    for line in (out / "dropped.jsonl").read_bytes().splitlines():
        one = msgspec.json.decode(line, type=Dropped)
        dropped.setdefault(one.reason, []).append(one)
    assert {reason: len(items) for reason, items in dropped.items()} == report.dropped
    assert msgspec.json.decode((out / "curation.json").read_bytes(), type=Curation) == report
    return report, dropped, out


def test_duplicates_leaks_and_broken_files_go_and_are_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for i in range(6):
        save(images / f"{i}.jpg", scene(i))
    (images / "0-copy.jpg").write_bytes((images / "0.jpg").read_bytes())
    save(images / "1-resaved.jpg", ImageEnhance.Brightness(scene(1).resize((80, 60))).enhance(1.05), quality=60)
    save(images / "in-test.jpg", scene(5).resize((100, 75)))
    (images / "broken.jpg").write_bytes((images / "2.jpg").read_bytes()[:300])
    (images / "empty.jpg").write_bytes(b"")
    train = ["0", "0-copy", "1", "1-resaved", "2", "3", "4", "in-test", "broken", "empty", "gone"]
    settings = source(
        tmp_path,
        {
            "train": [(f"{name}.jpg", [f"caption of {name}", "a shared text"]) for name in train],
            "test": [("5.jpg", ["the test picture"])],
        },
    )
    report, dropped, out = run(settings, tmp_path)
    assert [s.id for s in read_samples(out, "train")] == [f"train/{i}.jpg" for i in range(5)]
    assert [s.id for s in read_samples(out, "test")] == ["test/5.jpg"]
    assert [(d.name, d.detail) for d in dropped["duplicate"]] == [("0-copy.jpg", "0.jpg")]
    assert [(d.name, d.detail) for d in dropped["near_duplicate"]] == [("1-resaved.jpg", "1.jpg")]
    assert [(d.name, d.detail) for d in dropped["leak"]] == [("in-test.jpg", "test: 5.jpg")]
    assert [d.name for d in dropped["corrupt"]] == ["broken.jpg"]
    assert [d.name for d in dropped["empty"]] == ["empty.jpg"]
    assert [d.name for d in dropped["missing"]] == ["gone.jpg"]
    assert (report.records, report.samples) == (12, {"test": 1, "train": 5, "val": 0})
    # one file, all its captions
    assert read_samples(out, "train")[0].captions == ("caption of 0", "a shared text", "caption of 0-copy")


def test_provenance_stays_with_each_sample(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", scene(1))
    _, _, out = run(source(tmp_path, {"train": [("a.jpg", ["a small picture"])]}), tmp_path)
    sample = read_samples(out, "train")[0]
    assert (sample.source, sample.licence, len(sample.sha256)) == ("set", "CC-BY-4.0", 64)
    picture = sample.picture(out)
    assert preprocess(as_source(picture), PreprocessSpec(height_px=32, width_px=32)).shape == (32, 32, 3)


def test_the_published_test_split_keeps_its_duplicates_and_says_so(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save(tmp_path / "images" / f"{name}.jpg", scene(seed))
    lists = {
        "test": [(f"{n}.jpg", ["some text"]) for n in "ab"],
        "train": [("c.jpg", ["some text"])],
    }
    report, _, _ = run(source(tmp_path, lists), tmp_path)
    assert (report.samples["test"], report.duplicates_kept) == (2, 1)


def test_held_out_pictures_are_chosen_by_name_and_never_both(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / "images" / f"{i}.jpg", scene(i))
    settings = PicturesData(name="mine", path="images", val=3, test=5)
    report, _, out = run(settings, tmp_path)
    assert report.samples == {"train": 12, "val": 3, "test": 5}
    before = {split: [s.id for s in read_samples(out, split)] for split in report.samples}
    save(tmp_path / "images" / "new.jpg", scene(77))
    _, _, out = run(settings, tmp_path)
    after = {split: [s.id for s in read_samples(out, split)] for split in report.samples}
    assert len(set(after["test"]) & set(before["test"])) >= 4  # at most the new one comes between
    assert all(s.captions == () for s in read_samples(out, "train"))


def test_more_held_out_than_there_is_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", scene(1))
    with pytest.raises(DataError, match=r"data\.test"):
        run(PicturesData(name="mine", path="images", test=5), tmp_path)


def test_a_caption_that_many_pictures_share_goes(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / "images" / f"{i}.jpg", scene(i))
    rows = [(f"{i}.jpg", ["Stock photo", f"number {i} of them"]) for i in range(8)]
    _, dropped, out = run(source(tmp_path, {"train": rows}, max_repeats=7), tmp_path)
    assert len(dropped["repeated"]) == 8
    assert [s.captions for s in read_samples(out, "train")] == [(f"number {i} of them",) for i in range(8)]


def test_a_picture_that_lost_its_captions_goes_unless_a_teacher_shall_describe_it(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", scene(1))
    save(tmp_path / "images" / "b.jpg", scene(2))
    lists = {"train": [("a.jpg", ["IMG_1234.JPG", ""]), ("b.jpg", ["two balls"])]}
    _, dropped, out = run(source(tmp_path, lists), tmp_path)
    assert [d.name for d in dropped["no_caption"]] == ["a.jpg"]
    kept = source(tmp_path, lists, uncaptioned="keep")
    _, dropped, out = run(kept, tmp_path)
    assert [s.captions for s in read_samples(out, "train")] == [(), ("two balls",)]
    assert "no_caption" not in dropped


def test_too_many_broken_records_are_refused_and_listed(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", scene(1))
    settings = source(tmp_path, {"train": [("a.jpg", ["a b c"]), ("x.jpg", ["d"]), ("y.jpg", ["e"])]})
    with pytest.raises(DataError, match=r"3 records, 2 of them broken: 2 missing"):
        run(settings, tmp_path)
    assert len((tmp_path / "data" / "dropped.jsonl").read_bytes().splitlines()) == 2


def test_a_folder_of_another_data_set_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", scene(1))
    run(PicturesData(name="mine", path="images"), tmp_path)
    with pytest.raises(DataError, match="data set theirs"):
        run(PicturesData(name="theirs", path="images"), tmp_path)


def test_finished_chunks_of_hashes_are_kept_and_changed_pictures_hashed_anew(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"{i}.jpg", scene(i))
    settings = PicturesData(name="mine", path="images")
    _, _, out = run(settings, tmp_path)
    first = sorted((out / "fingerprints").iterdir())
    stamp = first[0].stat().st_mtime_ns
    run(settings, tmp_path)
    assert [p.stat().st_mtime_ns for p in sorted((out / "fingerprints").iterdir())] == [stamp]
    save(tmp_path / "images" / "2.jpg", scene(1))
    _, dropped, _ = run(settings, tmp_path)
    assert [d.name for d in dropped["duplicate"]] == ["2.jpg"]  # a copy of 1 now


def test_two_processes_hash_as_one_does(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "images" / f"{i}.jpg", scene(i % 3))
    settings = PicturesData(name="mine", path="images")
    one = curate(settings, tmp_path / "one", base=tmp_path, workers=1)
    assert curate(settings, tmp_path / "two", base=tmp_path, workers=2) == one
    assert (tmp_path / "two" / "train.jsonl").read_bytes() == (tmp_path / "one" / "train.jsonl").read_bytes()


def test_near_duplicates_by_embedding(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "images" / f"{i}.jpg", scene(i))
    vectors = {0: [1.0, 0.0], 1: [0.0, 1.0], 2: [0.999, 0.0447], 3: [-1.0, 0.0]}

    def embed(pictures: object) -> np.ndarray:
        return np.array([vectors[int(p.stem)] for p in pictures], dtype=np.float32)  # type: ignore[attr-defined]

    settings = PicturesData(name="mine", path="images", curate=CurateRecipe(near_cosine=0.99))
    report = curate(settings, tmp_path / "out", base=tmp_path, workers=1, embed=embed)
    assert report.dropped == {"near_duplicate": 1}
    assert [s.id for s in read_samples(tmp_path / "out", "train")] == ["train/0.jpg", "train/1.jpg", "train/3.jpg"]


# Duplicates


def test_groups_by_hash_equal_brute_force() -> None:
    rng = np.random.default_rng(5)
    centres = rng.integers(0, 256, size=(40, 16), dtype=np.uint8)
    looks = centres[rng.integers(40, size=300)]
    flips = rng.integers(0, 5, size=300)
    for row, count in enumerate(flips):
        for bit in rng.choice(128, size=count, replace=False):
            looks[row, bit // 8] ^= 1 << (bit % 8)
    for distance in (0, 3, 7):
        close = np.bitwise_count(looks[:, None] ^ looks[None]).sum(axis=2) <= distance
        expected = np.arange(300)
        for _ in range(300):  # the smallest row that can be reached, by spreading
            spread = np.where(close, expected[None, :], 300).min(axis=1)
            if (spread == expected).all():
                break
            expected = spread
        assert (near_groups(looks, distance=distance) == expected).all()


def test_exact_and_similar_groups() -> None:
    digests = np.array([[1, 2], [3, 4], [1, 2], [3, 5]], dtype=np.uint8)
    assert exact_groups(digests).tolist() == [0, 1, 0, 3]
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 2, 1]]
    assert similar_groups(vectors, cosine=0.99).tolist() == [0, 1, 0, 3, 1]


# Captions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", "empty"),
        (" \t\n ", "empty"),
        ("a", "too_short"),
        ("word " * 30_000, "too_long"),
        ("IMG_20210304.jpg", "file_name"),
        ("dsc 0042", "file_name"),
        ("see https://example.org/x for more", "address"),
        ("write to me@example.org today", "address"),
        ("12345 67890", "no_language"),
        ("!!! ??? *** ...", "no_language"),
        ("a dog aaaaaaaaaaaaaaaa", "repetition"),
        ("dog dog dog dog dog dog", "repetition"),
        ("a dog on the beach.", None),
        ("两只海鸥在海滩上", None),
        ("एक कुत्ता", None),
        ("كلب على الشاطئ", None),
        ("3 dogs", None),
    ],
)
def test_faults_of_captions_know_no_language(caption: str, expected: str | None) -> None:
    assert fault(clean(caption), CurateRecipe()) == expected
    assert expected is None or expected in CAPTION_FAULTS


def test_cleaning_keeps_the_words() -> None:
    assert clean("  a <b>dog</b>\u0000 \u200b on\u00a0the\n beach ") == "a dog \u200b on the beach"
    assert clean("Mo\u0308we") == "Möwe"
    assert clean("5 < 6 and 7 > 2") == "5 < 6 and 7 > 2"


# Samples


def test_samples_are_read_line_by_line_from_disk(tmp_path: Path) -> None:
    samples = [Sample(id=f"train/{i}", image=f"{i}.jpg", captions=(f"text {i}",)) for i in range(1000)]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, samples)))  # no newline at the end
    read = SampleList(path, Sample)
    assert (len(read), read[0], read[-1], read[3:5]) == (1000, samples[0], samples[-1], samples[3:5])
    assert list(read) == samples
    with pytest.raises(IndexError):
        read[1000]


def test_a_malformed_sample_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"id": "a", "image": "b"}\n{"id": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_samples(tmp_path, "train"))
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        read_samples(tmp_path, "gone")
    (tmp_path / "none.jsonl").write_bytes(b"")
    assert len(read_samples(tmp_path, "none")) == 0
