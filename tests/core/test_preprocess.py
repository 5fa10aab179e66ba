"""The preprocessing spec, where a picture is placed, and the two ways to fit it."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import (
    Placement,
    PreprocessSpec,
    decode,
    fit_pixels,
    fit_pixels_exact,
    place,
    preprocess,
)

specs = st.builds(
    PreprocessSpec,
    height_px=st.integers(1, 80),
    width_px=st.integers(1, 80),
    fit=st.sampled_from(["crop", "squash", "pad"]),
    filter=st.sampled_from(["bicubic", "bilinear"]),
    pad_colour=st.tuples(*[st.integers(0, 255)] * 3),
)


def spec_of(height: int, width: int, fit: str) -> PreprocessSpec:
    return msgspec.convert({"height_px": height, "width_px": width, "fit": fit}, PreprocessSpec)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_spec_survives_json() -> None:
    spec = PreprocessSpec(height_px=96, width_px=128, fit="pad", filter="bilinear", matte=(1, 2, 3))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=PreprocessSpec) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"height_px": 0},
        {"width_px": 4097},
        {"fit": "stretch"},
        {"filter": "lanczos"},
        {"matte": [0, 0, 256]},
        {"pad_colour": [0, 0]},
        {"formats": []},
        {"formats": ["EPS"]},
        {"max_pixels": 10**9},
        {"max_bytes": 0},
        {"max_aspect": 0},
        {"sharpen": True},
        {"height_px": "96"},
    ],
)
def test_a_spec_with_a_bad_or_unknown_field_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"height_px": 96, "width_px": 96, **change}, PreprocessSpec)


@pytest.mark.parametrize("change", [{"version": 2}, {"width_px": 1.5}, {"matte": (0, 0)}, {"fit": "stretch"}])
def test_a_spec_built_in_code_is_checked_too(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        PreprocessSpec(**{"height_px": 96, "width_px": 96, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("picture", "fit", "expected"),
    [
        ((300, 400), "crop", Placement(96, 128, 0, 16)),
        ((400, 300), "crop", Placement(128, 96, 16, 0)),
        # 96 * 101 / 100 = 96.96 -> 97, and of the odd pixel the larger half stays right.
        ((100, 101), "crop", Placement(96, 97, 0, 0)),
        # 96 * 193 / 192 = 96.5: halves go up.
        ((192, 193), "crop", Placement(96, 97, 0, 0)),
        ((300, 400), "squash", Placement(96, 96, 0, 0)),
        ((300, 400), "pad", Placement(72, 96, -12, 0)),
        ((400, 301), "pad", Placement(96, 72, 0, -12)),
        ((1, 1000), "pad", Placement(1, 96, -47, 0)),
        ((96, 96), "crop", Placement(96, 96, 0, 0)),
    ],
)
def test_placement(picture: tuple[int, int], fit: str, expected: Placement) -> None:
    assert place(*picture, spec_of(96, 96, fit)) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 10**5), st.integers(1, 10**5), specs)
def test_crops_cover_and_pads_fit_the_target(height: int, width: int, spec: PreprocessSpec) -> None:
    rows, columns, top, left = place(height, width, spec)
    over = (rows - spec.height_px, columns - spec.width_px)
    if spec.fit == "crop":
        assert min(over) == 0
        assert (top, left) == (over[0] // 2, over[1] // 2)
    elif spec.fit == "pad":
        assert max(over) == 0
        assert min(rows, columns) >= 1
        assert (top, left) == (-(-over[0] // 2), -(-over[1] // 2))
    else:
        assert (*over, top, left) == (0, 0, 0, 0)


@contextmanager
def by_pillow() -> Iterator[None]:
    """Resize as an installation without the extension module does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketlens.core.preprocess.fit_compiled", lambda source, spec: None)
        yield


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), specs, st.integers(0, 99))
def test_every_way_to_fit_gives_the_same_bits(height: int, width: int, spec: PreprocessSpec, seed: int) -> None:
    pixels = noise(height, width, seed)
    exact = fit_pixels_exact(pixels, spec)
    for way in (nullcontext, by_pillow):
        with way():
            fitted = fit_pixels(pixels, spec)
        np.testing.assert_array_equal(fitted, exact)
        assert fitted.shape == (spec.height_px, spec.width_px, 3)
        assert fitted.dtype == np.uint8


@pytest.mark.parametrize("way", [nullcontext, by_pillow], ids=["as installed", "Pillow"])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 900), (1200, 1600)])
def test_all_ways_agree_at_the_extremes(
    shape: tuple[int, int], fit: str, way: Callable[[], AbstractContextManager[None]]
) -> None:
    pixels = noise(*shape)
    spec = spec_of(40, 56, fit)
    with way():
        np.testing.assert_array_equal(fit_pixels(pixels, spec), fit_pixels_exact(pixels, spec))


def test_a_strip_too_long_to_enlarge_whole_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlens.core.preprocess.fit_compiled", lambda source, spec: None)
    pixels = noise(4, 300)
    spec = spec_of(64, 64, "crop")
    whole = fit_pixels(pixels, spec)
    monkeypatch.setattr("pocketlens.core.preprocess._MAX_STEP_PIXELS", 0)
    np.testing.assert_array_equal(fit_pixels(pixels, spec), whole)


def test_a_crop_keeps_the_centre_and_a_pad_fills_the_sides() -> None:
    pixels = np.zeros((96, 288, 3), np.uint8)
    pixels[:, 96:192] = (10, 200, 30)
    assert (fit_pixels(pixels, spec_of(96, 96, "crop"))[:, 4:-4] == (10, 200, 30)).all()

    spec = PreprocessSpec(height_px=96, width_px=96, fit="pad", pad_colour=(7, 8, 9))
    padded = fit_pixels(pixels, spec)
    assert (padded[:32] == (7, 8, 9)).all()
    assert (padded[64:] == (7, 8, 9)).all()
    assert not (padded[32:64] == (7, 8, 9)).all(axis=2).any()


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = noise(48, 32)
    for fit in ("crop", "squash", "pad"):
        np.testing.assert_array_equal(fit_pixels(pixels, spec_of(48, 32, fit)), pixels)


def test_preprocess_is_decode_then_fit_for_every_kind_of_source(tmp_path: Path) -> None:
    pixels = noise(60, 90)
    spec = spec_of(32, 32, "crop")
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(file.getvalue())
    file.seek(0)

    expected = fit_pixels(decode(pixels, spec), spec)
    for source in (path, str(path), file, file.getvalue(), image, pixels, pixels[:, ::-1][:, ::-1]):
        result = preprocess(source, spec)
        np.testing.assert_array_equal(result, expected)
        assert result.flags.c_contiguous
        assert result.flags.writeable


@pytest.mark.parametrize("fit", [fit_pixels, fit_pixels_exact])
@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.zeros((4, 4, 3), np.float32), "unknown_type"),
        (np.zeros((4, 4, 4), np.uint8), "bad_shape"),
        (np.zeros((4, 4), np.uint8), "bad_shape"),
        (np.zeros((0, 4, 3), np.uint8), "bad_shape"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(
    fit: Callable[[NDArray[Any], PreprocessSpec], NDArray[np.uint8]], pixels: NDArray[Any], kind: str
) -> None:
    with pytest.raises(PictureError) as refusal:
        fit(pixels, spec_of(8, 8, "crop"))
    assert refusal.value.kind == kind
