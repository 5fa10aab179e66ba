"""Pictures with captions that the user brings."""

from pathlib import Path

import pytest
from PIL import Image

from pocketlens.core.errors import DataError
from pocketlens.export.sources.captioned import Captioned, read_captioned, samples_of, split_captioned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def _written(folder: Path, *lines: str) -> Path:
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


GOOD = '{"image": "a.png", "captions": ["one", "two"], "source": "ignored"}'


def test_pictures_and_captions_are_read_in_order(folder: Path) -> None:
    found = read_captioned(_written(folder, GOOD, "", '{"image": "a.png", "captions": ["three"]}'))
    assert found == [Captioned(folder / "a.png", ("one", "two")), Captioned(folder / "a.png", ("three",))]
    assert list(samples_of(found).captions) == ["one", "three"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected image and captions as JSON"),
        ('{"image": "a.png"}', "line 2: expected image and captions as JSON"),
        ('{"image": "a.png", "captions": []}', "found 0 captions"),
        ('{"image": "b.png", "captions": ["x"]}', "no file"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_captioned(_written(folder, GOOD, line))


def test_one_picture_is_too_few_and_none_is_no_file(folder: Path) -> None:
    with pytest.raises(DataError, match="at least two pictures"):
        read_captioned(_written(folder, GOOD))
    with pytest.raises(DataError, match="readable JSON-lines file"):
        read_captioned(folder / "nothing.jsonl")


@pytest.mark.parametrize(("count", "held"), [(2, [1]), (4, [3]), (5, [4]), (12, [4, 9])])
def test_nothing_is_both_calibrated_with_and_judged_on(count: int, held: list[int]) -> None:
    pictures = [Captioned(Path(str(index)), ("x",)) for index in range(count)]
    judged, calibrating = split_captioned(pictures)
    assert [int(str(picture.image)) for picture in calibrating] == held
    assert sorted(int(str(p.image)) for p in judged + calibrating) == list(range(count))
