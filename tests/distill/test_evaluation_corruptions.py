from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.distill.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, write_corrupted


def _picture() -> Image.Image:
    """A smooth picture with sharp edges, which every corruption changes."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([x * 2, y * 2, 255 * ((x // 16 + y // 16) % 2)], axis=-1).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _error(picture: Image.Image) -> float:
    return float(np.mean((np.asarray(picture, dtype=float) - np.asarray(_picture(), dtype=float)) ** 2))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(kind: str) -> None:
    errors = [_error(corrupt(_picture(), kind, severity, key="a", seed=0)) for severity in SEVERITIES]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_amounts_are_those_that_are_documented() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noise = np.asarray(corrupt(grey, "noise", 2, key="a", seed=0), dtype=float)
    assert noise.std() == pytest.approx(25, rel=0.02)
    dark = np.asarray(corrupt(grey, "dark", 2, key="a", seed=0), dtype=float)
    assert (dark.mean(), dark.std()) == pytest.approx((32, 3), rel=0.03)
    encoded = BytesIO()
    grey.save(encoded, "JPEG", quality=6)
    assert np.array_equal(corrupt(grey, "jpeg", 3, key="a", seed=0), Image.open(encoded).convert("RGB"))


def test_the_picture_and_the_seed_decide_the_noise_and_nothing_else() -> None:
    def noisy(key: str, seed: int) -> bytes:
        return corrupt(_picture(), "noise", 1, key=key, seed=seed).tobytes()

    assert noisy("a", 0) == noisy("a", 0)
    assert noisy("a", 0) != noisy("b", 0)
    assert noisy("a", 0) != noisy("a", 1)


def test_a_file_is_read_upright_and_made_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "in.jpg", exif=exif)
    write_corrupted(tmp_path / "in.jpg", tmp_path / "out.png", "blur", 1, key="a", seed=0)
    with Image.open(tmp_path / "out.png") as written:
        assert written.size == (256, 512)
        assert written.getpixel((100, 100)) == pytest.approx((254, 0, 0), abs=2)
    with pytest.raises(PictureError):
        write_corrupted(tmp_path / "missing.jpg", tmp_path / "out.png", "blur", 1, key="a", seed=0)
