"""HEIF files through pillow-heif: colours, orientation, alpha, and what is said where it is not installed."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketlens.core import picture_gate
from pocketlens.core.decode import decode
from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess_spec import PreprocessSpec
from tests.core.test_decode import STORED, WIDE_RGB, blocks

pillow_heif = pytest.importorskip("pillow_heif")

SPEC = PreprocessSpec(height_px=32, width_px=32, formats=("JPEG", "PNG", "HEIF"))


def heif(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


def scene() -> Image.Image:
    return Image.fromarray(blocks(64, 96))


def test_a_heif_file_keeps_its_colours() -> None:
    assert np.abs(decode(heif(scene()), SPEC).astype(int) - blocks(64, 96)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_container_is_applied_once(orientation: int) -> None:
    # pillow-heif turns the orientation of EXIF into the container's own properties (irot, imir) and keeps both.
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](blocks(64, 96))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(heif(stored, exif=exif.tobytes()), SPEC)
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels.astype(int) - blocks(64, 96)).max() <= 2


def test_alpha_shows_the_matte_and_a_profile_is_applied() -> None:
    transparent = scene()
    transparent.putalpha(0)
    assert (decode(heif(transparent), SPEC) == 255).all()
    colour = Image.new("RGB", (64, 64), (200, 100, 100))
    plain, wide = decode(heif(colour), SPEC), decode(heif(colour, icc_profile=WIDE_RGB), SPEC)
    assert np.abs(plain.astype(int) - wide).max() > 10


def test_deep_samples_are_read_as_8_bits() -> None:
    levels = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    file = io.BytesIO()
    pillow_heif.from_bytes("L;16", (64, 64), levels.tobytes()).save(file, quality=-1)
    assert np.abs(decode(file.getvalue(), SPEC)[..., 0].astype(int) - (levels >> 8)).max() <= 1


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_heif_file_is_corrupt(kept: float) -> None:
    data = heif(scene())
    with pytest.raises(PictureError) as refusal:
        decode(data[: int(len(data) * kept)], SPEC)
    assert refusal.value.kind == "corrupt"


def test_a_stated_size_beyond_the_limit_is_refused() -> None:
    spec = PreprocessSpec(height_px=32, width_px=32, formats=("HEIF",), max_pixels=1000)
    with pytest.raises(PictureError) as refusal:
        decode(heif(scene()), spec)
    assert refusal.value.kind == "too_many_pixels"


def test_pillow_does_not_learn_to_open_heif_behind_the_program_s_back() -> None:
    decode(heif(scene()), SPEC)
    assert "HEIF" not in Image.OPEN


def test_without_pillow_heif_the_refusal_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heif(scene())
    monkeypatch.setattr(picture_gate, "find_spec", lambda name: None)
    picture_gate._has_heif.cache_clear()
    try:
        with pytest.raises(PictureError, match=r"pocketlens\[heic\]") as refusal:
            decode(data, SPEC)
    finally:
        picture_gate._has_heif.cache_clear()
    assert refusal.value.kind == "type_not_allowed"
