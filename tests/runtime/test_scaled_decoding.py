"""Large JPEG files decoded smaller: which, by how much, and to what pixels."""

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import PreprocessSpec, decode, fit_pixels, preprocess
from pocketlens.core.scaled_decoding import jpeg_divisor
from pocketlens.runtime import load
from tests.runtime.conftest import build_bundle

_FULL = PreprocessSpec(height_px=32, width_px=48)
_SCALED = msgspec.structs.replace(_FULL, jpeg_scaling="dct")
_ORIENTATION = 0x0112


def _pixels(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    coarse = rng.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _encoded(width: int, height: int, form: str = "JPEG", orientation: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    _pixels(width, height).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "divisor"),
    [
        (143, 5000, 1),  # 2 * 143 < 3 * 2 * 48
        (144, 144, 2),
        (287, 1000, 2),
        (288, 288, 4),
        (575, 576, 4),
        (576, 576, 8),
        (10_000, 10_000, 8),
    ],
)
def test_the_divisor_is_the_largest_that_leaves_one_and_a_half_times_the_target(
    width: int, height: int, divisor: int
) -> None:
    assert jpeg_divisor(width, height, _SCALED) == jpeg_divisor(height, width, _SCALED) == divisor
    assert jpeg_divisor(width, height, _FULL) == 1


@pytest.mark.parametrize(("width", "height"), [(576, 577), (583, 601), (295, 299), (150, 147), (144, 900)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_picture_has_the_divided_size_rounded_up(width: int, height: int, orientation: int) -> None:
    divisor = jpeg_divisor(width, height, _SCALED)
    assert divisor > 1
    size = (-(-height // divisor), -(-width // divisor))
    pixels = decode(_encoded(width, height, orientation=orientation), _SCALED)
    assert pixels.shape[:2] == (size if orientation == 1 else size[::-1])


def test_the_pixels_are_those_of_the_scaled_file_and_near_those_of_the_full_one() -> None:
    data = _encoded(800, 640, quality=95)
    scaled = decode(data, _SCALED)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (100, 80))
        np.testing.assert_array_equal(scaled, np.asarray(image))
    np.testing.assert_array_equal(preprocess(data, _SCALED), fit_pixels(scaled, _SCALED))
    apart = np.abs(preprocess(data, _SCALED).astype(int) - preprocess(data, _FULL))
    assert apart.mean() < 4
    assert apart.max() > 0, "both were decoded in the same way"


def test_flat_colours_come_out_as_they_are() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (800, 640), (200, 40, 90)).save(buffer, "JPEG", quality=95)
    full = decode(buffer.getvalue(), _FULL)
    assert np.abs(decode(buffer.getvalue(), _SCALED)[0, 0].astype(int) - full[0, 0]).max() <= 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"quality": 30}])
def test_every_kind_of_jpeg_is_scaled(options: dict[str, object]) -> None:
    assert decode(_encoded(800, 640, **options), _SCALED).shape == (80, 100, 3)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_scaled_too(mode: str) -> None:
    buffer = io.BytesIO()
    _pixels(800, 640).convert(mode).save(buffer, "JPEG")
    assert decode(buffer.getvalue(), _SCALED).shape == (80, 100, 3)


def test_the_first_picture_of_an_mpo_file_is_scaled_as_the_same_jpeg_is() -> None:
    image = _pixels(800, 640)
    jpeg, mpo = io.BytesIO(), io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    image.save(mpo, "MPO", quality=90, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
    np.testing.assert_array_equal(decode(mpo.getvalue(), _SCALED), decode(jpeg.getvalue(), _SCALED))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_decoded_in_full(form: str) -> None:
    buffer = io.BytesIO()
    _pixels(800, 640).save(buffer, form)
    np.testing.assert_array_equal(decode(buffer.getvalue(), _SCALED), decode(buffer.getvalue(), _FULL))


def test_small_jpeg_files_give_the_old_bits() -> None:
    data = _encoded(143, 900)
    np.testing.assert_array_equal(preprocess(data, _SCALED), preprocess(data, _FULL))


def test_the_gate_counts_the_pixels_of_the_file_and_truncated_ones_stay_refused() -> None:
    data = _encoded(800, 640)
    with pytest.raises(PictureError) as refusal:
        decode(data, msgspec.structs.replace(_SCALED, max_pixels=800 * 640 - 1))
    assert refusal.value.kind == "too_many_pixels"
    with pytest.raises(PictureError) as refusal:
        decode(data[: len(data) // 2], _SCALED)
    assert refusal.value.kind == "corrupt"


def test_a_spec_says_none_or_dct_and_old_ones_mean_none() -> None:
    assert msgspec.json.decode(b'{"height_px":8,"width_px":8}', type=PreprocessSpec).jpeg_scaling == "none"
    for wrong in ("half", "", 8):
        with pytest.raises((ValueError, TypeError)):
            PreprocessSpec(height_px=8, width_px=8, jpeg_scaling=wrong)  # type: ignore[arg-type]


def test_the_bundles_spec_decides_what_the_lens_sees(bundle_path: Path, tmp_path: Path) -> None:
    changed = build_bundle(
        tmp_path / "scaled",
        change=lambda manifest: msgspec.structs.replace(
            manifest, preprocess=msgspec.structs.replace(manifest.preprocess, jpeg_scaling="dct")
        ),
    )
    data = _encoded(800, 640)
    scaled = load(changed, threads=1)
    assert scaled.bundle.manifest.preprocess.jpeg_scaling == "dct"
    pixels = preprocess(data, scaled.bundle.manifest.preprocess)
    np.testing.assert_array_equal(scaled.embed_image(data), load(bundle_path, threads=1).embed_image(pixels))
