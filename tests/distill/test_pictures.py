from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.pictures import batches, load_pixels
from tests.distill.tiny import noise

SPEC = PreprocessSpec(height_px=16, width_px=16)


def _write(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(count)]
    for path, picture in zip(paths, noise(count, 24), strict=True):
        Image.fromarray(picture).save(path)
    return paths


def test_pixels_are_those_of_the_one_preprocessing(tmp_path: Path) -> None:
    paths = _write(tmp_path, 3)
    pixels = load_pixels(paths, SPEC, cache=tmp_path / "cache", workers=1)
    assert np.array_equal(pixels, np.stack([preprocess(path, SPEC) for path in paths]))


def test_the_cache_is_used_until_a_picture_or_the_spec_changes(tmp_path: Path) -> None:
    paths, cache = _write(tmp_path, 2), tmp_path / "cache"
    load_pixels(paths, SPEC, cache=cache, workers=1)
    (first,) = cache.iterdir()
    load_pixels(paths, SPEC, cache=cache, workers=1)
    assert list(cache.iterdir()) == [first]
    Image.fromarray(noise(1, 31, seed=9)[0]).save(paths[0])
    changed = load_pixels(paths, SPEC, cache=cache, workers=1)
    assert np.array_equal(changed[0], preprocess(paths[0], SPEC))
    load_pixels(paths, PreprocessSpec(height_px=8, width_px=8), cache=cache, workers=1)
    assert len(list(cache.iterdir())) == 3


def test_a_bad_picture_leaves_no_half_cache(tmp_path: Path) -> None:
    paths = _write(tmp_path, 2)
    paths[1].write_bytes(b"no picture")
    with pytest.raises(PictureError):
        load_pixels(paths, SPEC, cache=tmp_path / "cache", workers=1)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_batches_cover_everything_once_and_in_order() -> None:
    assert [list(range(10))[part] for part in batches(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
