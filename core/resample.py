"""Antialiased resampling as two integer matrix products: what spec version 1 means, bit by bit.

The arithmetic is that of the 8-bit resampler in Pillow, one axis at a time, which the tests hold
equal to this in every bit. For one axis, n input samples, m output samples:

1. scale = n / m, stretch = max(scale, 1), support = radius * stretch; the radius is 1 for
   bilinear, 2 for bicubic. All in IEEE double precision, in the order written here.
2. Output i is centred at c = (i + 0.5) * scale and reads the samples from
   max(trunc(c - support + 0.5), 0) up to, not including, min(trunc(c + support + 0.5), n).
3. The weight of sample j is kernel((j - c + 0.5) * (1 / stretch)), divided by the sum of the
   weights of output i, summed with rising j.
4. Each weight is multiplied by 2**22 and rounded half away from zero: an int32.
5. Output = clip((sum of weight * sample + 2**21) >> 22, 0, 255), in int32, arithmetic shift.

The horizontal pass comes first (the width changes), back to uint8, then the vertical one, always:
Pillow up to 12 does the same, Pillow 13 swaps them for some sizes when one call changes both. An
axis whose size does not change is not touched.
"""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRECISION_BITS", "FilterName", "resample_exact", "tap_weights"]

PRECISION_BITS: Final = 22
"""Fraction bits of a weight: 8 bits of sample, 2 of headroom and 22 of fraction fill an int32."""

FilterName = Literal["bicubic", "bilinear"]
"""Name of a resampling kernel."""

_RADIUS: Final = {"bilinear": 1.0, "bicubic": 2.0}
# Elements of an int32 accumulator held at a time: 16 MiB, and small enough for a CPU cache to help.
_BAND_ELEMENTS: Final = 2**22


def _kernel(x: NDArray[np.float64], filter_name: FilterName) -> NDArray[np.float64]:
    x = np.abs(x)
    if filter_name == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    # Keys 1981, "Cubic convolution interpolation for digital image processing", with a = -0.5.
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def tap_weights(size_in: int, size_out: int, filter_name: FilterName) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the banded coefficient matrix of one axis: where each band starts and its weights.

    Args:
        size_in: samples before, at least 1.
        size_out: samples after, at least 1.
        filter_name: `bicubic` or `bilinear`.

    Returns:
        `first` int64 (size_out,): index of the first sample that each output reads, and
        `weights` int32 (size_out, taps) in units of 2**-22, zero where a band is shorter than
        `taps` (also where the band would pass the last sample).
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = _RADIUS[filter_name] * stretch
    centre = (np.arange(size_out) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0.0).astype(np.int64)
    end = np.minimum(np.trunc(centre + support + 0.5), size_in).astype(np.int64)
    taps = int((end - first).max())
    index = first[:, None] + np.arange(taps)  # (size_out, taps)
    weights = _kernel((index - centre[:, None] + 0.5) * (1.0 / stretch), filter_name)
    weights[index >= end[:, None]] = 0.0
    # One tap after the other: numpy's own sum adds in pairs, which rounds differently.
    total = np.zeros(size_out)
    for tap in range(taps):
        total += weights[:, tap]
    weights /= np.where(total != 0.0, total, 1.0)[:, None]
    scaled = weights * float(1 << PRECISION_BITS)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _blend(samples: NDArray[np.uint8], first: NDArray[np.int64], weights: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return uint8 (A, m, C) from `samples` (A, n, C): axis 1 times the banded matrix."""
    last = samples.shape[1] - 1
    total = np.full((samples.shape[0], len(first), samples.shape[2]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        taken = np.take(samples, np.minimum(first + tap, last), axis=1)
        total += taken * weights[:, tap, None]  # uint8 * int32 -> int32
    clipped: NDArray[np.uint8] = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return clipped


def resample_exact(
    pixels: NDArray[np.uint8],
    *,
    height_px: int,
    width_px: int,
    filter_name: FilterName,
    rows: slice | None = None,
    columns: slice | None = None,
) -> NDArray[np.uint8]:
    """Return `pixels` resized to (height_px, width_px), or the asked-for window of that.

    Only what the window needs is computed, with the weights of the whole: the bits are those of
    resizing everything and cutting the window out.

    Args:
        pixels: uint8 (H, W, C).
        height_px: rows of the whole result.
        width_px: columns of the whole result.
        filter_name: `bicubic` or `bilinear`.
        rows: window of the result's rows, step 1; `None` for all.
        columns: window of the result's columns, step 1; `None` for all.

    Returns:
        uint8 (rows, columns, C), contiguous.
    """
    height_in, width_in, channels = pixels.shape
    keep_rows = range(height_px)[rows or slice(None)]
    keep_columns = range(width_px)[columns or slice(None)]

    if height_in == height_px:
        pixels = pixels[keep_rows.start : keep_rows.stop]
    else:
        first_row, row_weights = tap_weights(height_in, height_px, filter_name)
        first_row = first_row[keep_rows.start : keep_rows.stop]
        row_weights = row_weights[keep_rows.start : keep_rows.stop]
        top = int(first_row.min())
        pixels = pixels[top : int(first_row.max()) + row_weights.shape[1]]
        first_row = first_row - top

    if width_in == width_px:
        pixels = pixels[:, keep_columns.start : keep_columns.stop]
    else:
        first, weights = tap_weights(width_in, width_px, filter_name)
        first = first[keep_columns.start : keep_columns.stop]
        weights = weights[keep_columns.start : keep_columns.stop]
        band = max(1, _BAND_ELEMENTS // (len(first) * channels))
        wide = np.empty((len(pixels), len(first), channels), np.uint8)
        for at in range(0, len(pixels), band):
            wide[at : at + band] = _blend(pixels[at : at + band], first, weights)
        pixels = wide

    if height_in == height_px:
        return np.ascontiguousarray(pixels)
    # The same product along the other axis: a column of (W, C) samples is one row of 1 x (W * C).
    flat = pixels.reshape(1, len(pixels), -1)
    band = max(1, _BAND_ELEMENTS // flat.shape[2])
    tall = np.empty((len(first_row), flat.shape[2]), np.uint8)
    for at in range(0, len(first_row), band):
        tall[at : at + band] = _blend(flat, first_row[at : at + band], row_weights[at : at + band])[0]
    return tall.reshape(len(first_row), -1, channels)
