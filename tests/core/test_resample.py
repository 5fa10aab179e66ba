"""The integer resampler: equal to Pillow in every bit, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.resample import PRECISION_BITS, FilterName, resample_exact, tap_weights

_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

sizes = st.integers(1, 90)
filters = st.sampled_from(["bicubic", "bilinear"])


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return full-range noise, half of the time only black and white: that overshoots the most."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


def pillow_two_passes(pixels: NDArray[np.uint8], height: int, width: int, name: str) -> NDArray[np.uint8]:
    wide = Image.fromarray(pixels).resize((width, pixels.shape[0]), _PILLOW[name])
    return np.asarray(wide.resize((width, height), _PILLOW[name]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, sizes, filters, st.integers(0, 999))
def test_equals_pillow_in_every_bit(
    height: int, width: int, height_px: int, width_px: int, name: FilterName, seed: int
) -> None:
    pixels = noise(height, width, seed)
    exact = resample_exact(pixels, height_px=height_px, width_px=width_px, filter_name=name)
    np.testing.assert_array_equal(exact, pillow_two_passes(pixels, height_px, width_px, name))


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("before", "after"), [((1, 4000), (3, 7)), ((4000, 1), (9, 5)), ((1, 1), (64, 48))])
def test_equals_pillow_at_extreme_shapes(before: tuple[int, int], after: tuple[int, int], name: FilterName) -> None:
    pixels = noise(*before, seed=1)
    exact = resample_exact(pixels, height_px=after[0], width_px=after[1], filter_name=name)
    np.testing.assert_array_equal(exact, pillow_two_passes(pixels, *after, name))


def test_bands_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(70, 50, seed=3)
    whole = resample_exact(pixels, height_px=33, width_px=21, filter_name="bicubic")
    monkeypatch.setattr("pocketlens.core.resample._BAND_ELEMENTS", 200)
    banded = resample_exact(pixels, height_px=33, width_px=21, filter_name="bicubic")
    np.testing.assert_array_equal(banded, whole)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, sizes, filters, st.data())
def test_a_window_has_the_bits_of_the_whole(
    height: int, width: int, height_px: int, width_px: int, name: FilterName, data: st.DataObject
) -> None:
    top = data.draw(st.integers(0, height_px - 1))
    left = data.draw(st.integers(0, width_px - 1))
    rows = slice(top, data.draw(st.integers(top + 1, height_px)))
    columns = slice(left, data.draw(st.integers(left + 1, width_px)))
    pixels = noise(height, width, seed=top + left)
    whole = resample_exact(pixels, height_px=height_px, width_px=width_px, filter_name=name)
    window = resample_exact(
        pixels, height_px=height_px, width_px=width_px, filter_name=name, rows=rows, columns=columns
    )
    np.testing.assert_array_equal(window, whole[rows, columns])
    assert window.flags.c_contiguous


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 400), filters)
def test_weights_sum_to_one_and_fit_an_int32_accumulator(size_in: int, size_out: int, name: FilterName) -> None:
    first, weights = tap_weights(size_in, size_out, name)
    one = 1 << PRECISION_BITS
    assert np.abs(weights.sum(axis=1, dtype=np.int64) - one).max() <= weights.shape[1]
    assert int(np.abs(weights.astype(np.int64)).sum(axis=1).max()) * 255 + one // 2 < 2**31
    assert first.min() >= 0
    # A tap past the last sample would read another row in a port: it must weigh nothing.
    index = first[:, None] + np.arange(weights.shape[1])
    assert not weights[index >= size_in].any()


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_plain_surface_keeps_its_level(level: int) -> None:
    pixels = np.full((37, 1201, 3), level, np.uint8)
    resized = resample_exact(pixels, height_px=50, width_px=17, filter_name="bicubic")
    assert (resized == level).all()
