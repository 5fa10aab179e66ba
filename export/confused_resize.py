"""Resizing as ports get it wrong: one function with a switch for each mistake. Right when no switch is set."""

from functools import lru_cache
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.resample import PRECISION_BITS

__all__ = ["Resize", "resize"]

Floats = NDArray[np.float64]
_RADIUS: Final = {"bilinear": 1.0, "bicubic": 2.0, "bicubic75": 2.0, "lanczos": 3.0, "box": 0.5, "nearest": 0.5}


class Resize(msgspec.Struct, frozen=True, kw_only=True):
    """What is done otherwise; by default nothing.

    Attributes:
        kernel: in place of the spec's; empty for that one. `bicubic75` is a = -0.75.
        antialias: whether the kernel widens when shrinking.
        centre: of output i: `half` (i + 0.5) * scale, `left` and `right` half a sample beside that,
            `top-left` i * scale + 0.5, `corners` where first and last samples coincide.
        border: weights beyond it are left out and the rest divided by their sum, or the edge is
            `repeat`ed, or `zero` lies there.
        rounding: of each pass.
        order: of the passes.
        between: type between the passes.
        light: in which levels are blended.
    """

    kernel: Literal["", "bilinear", "bicubic", "bicubic75", "lanczos", "box", "nearest"] = ""
    antialias: bool = True
    centre: Literal["half", "top-left", "corners", "left", "right"] = "half"
    border: Literal["divide", "repeat", "zero"] = "divide"
    rounding: Literal["near", "down"] = "near"
    order: Literal["horizontal", "vertical"] = "horizontal"
    between: Literal["uint8", "float"] = "uint8"
    light: Literal["srgb", "linear"] = "srgb"


def resize(pixels: NDArray[np.uint8], rows: int, columns: int, filter_name: str, how: Resize) -> NDArray[np.uint8]:
    """Return uint8 (rows, columns, C) of `pixels` (h, w, C)."""
    kernel = how.kernel or filter_name
    if kernel == "bicubic75" and filter_name == "bilinear":  # another a means nothing to that filter
        kernel = "bilinear"
    down = _matrix(pixels.shape[0], rows, kernel, how)
    across = _matrix(pixels.shape[1], columns, kernel, how)
    levels = pixels.astype(np.float64)
    if how.light == "linear":
        levels = _linear(levels)
    passes = [(across, 1), (down, 0)]
    if how.order == "vertical":
        passes.reverse()
    for index, (matrix, axis) in enumerate(passes):
        if matrix is None:
            continue
        levels = np.moveaxis(np.tensordot(matrix, levels, axes=(1, axis)), 0, axis)
        last = index == len(passes) - 1
        if how.light == "srgb" and (last or how.between == "uint8"):
            levels = _eight(levels, how.rounding)
    if how.light == "linear":
        levels = _encoded(levels)
    return _eight(levels, how.rounding).astype(np.uint8)


def _eight(levels: Floats, rounding: str) -> Floats:
    # Weights are multiples of 2**-22, so the products are exact and this is the spec's integer rounding.
    return np.clip(np.floor(levels + (0.5 if rounding == "near" else 0.0)), 0.0, 255.0)


@lru_cache(maxsize=1024)
def _matrix(size_in: int, size_out: int, kernel: str, how: Resize) -> Floats | None:
    """Return the weights (size_out, size_in) of one axis, in multiples of 2**-22."""
    if size_in == size_out:
        return None
    scale = size_in / size_out
    stretch = max(scale, 1.0) if how.antialias else 1.0
    out = np.arange(size_out)
    centre = (out + 0.5) * scale
    if how.centre == "top-left":
        centre = out * scale + 0.5
    elif how.centre in ("left", "right"):
        centre = centre + (0.5 if how.centre == "right" else -0.5)
    elif how.centre == "corners":
        centre = out * ((size_in - 1) / max(size_out - 1, 1)) + 0.5
    if kernel == "nearest":
        return np.eye(size_in)[np.minimum(centre.astype(np.int64), size_in - 1)]
    support = _RADIUS[kernel] * stretch
    reach = int(np.ceil(support)) + 1
    taps = np.floor(centre)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    weights = _kernel((taps - centre[:, None] + 0.5) * (1.0 / stretch), kernel)
    low = np.floor(centre - support + 0.5)[:, None]
    high = np.floor(centre + support + 0.5)[:, None]
    weights[(taps < low) | (taps >= high)] = 0.0
    inside = (taps >= 0) & (taps < size_in)
    if how.border == "divide":
        weights = np.where(inside, weights, 0.0)
    total = weights.sum(axis=1, keepdims=True)
    weights /= np.where(total == 0.0, 1.0, total)
    if how.border == "zero":
        weights = np.where(inside, weights, 0.0)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.broadcast_to(out[:, None], taps.shape), np.clip(taps, 0, size_in - 1)), weights)
    one = float(1 << PRECISION_BITS)
    scaled = matrix * one
    return np.trunc(scaled + np.copysign(0.5, scaled)) / one


def _kernel(x: Floats, name: str) -> Floats:
    x = np.abs(x)
    if name == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    if name == "box":
        return np.where(x <= 0.5, 1.0, 0.0)
    if name == "lanczos":
        return np.where(x < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)
    a = -0.75 if name == "bicubic75" else -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _linear(levels: Floats) -> Floats:
    """IEC 61966-2-1: levels 0..255 to linear light 0..1."""
    unit = levels / 255.0
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def _encoded(light: Floats) -> Floats:
    light = np.clip(light, 0.0, 1.0)
    return 255.0 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
