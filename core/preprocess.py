"""Pictures to the pixels that every graph takes: the one home of preprocessing, spec version 1.

Training, export, runtime and service call `preprocess`; what a graph was trained on is what it
sees. Everything after uint8 (cast, mean, standard deviation) is inside the graphs.

1. Decode to upright, opaque sRGB, 8 bits: `pocketlens.core.decode`, `pocketlens.core.colour`.
2. Place: with (h, w) the picture, (H, W) the target, all integers, // rounding down and
   near(a, b) = (2 * a + b) // (2 * b), which is a / b rounded, halves up:

   - `crop`: if W * h >= H * w, resize to (near(h * W, w), W), else to (H, near(w * H, h)); both
     cover the target. Keep H x W from row (rows - H) // 2 and column (columns - W) // 2.
   - `squash`: resize to (H, W).
   - `pad`: if W * h <= H * w, resize to (max(near(h * W, w), 1), W), else to
     (H, max(near(w * H, h), 1)); both fit. Put that on `pad_colour` at row (H - rows) // 2 and
     column (W - columns) // 2.

3. Resize: antialiased, in the fixed-point arithmetic written down in `pocketlens.core.resample`.

Steps 2 and 3 use no more than integers once the weights are there, so a port is held to the same
bits (golden vectors in the bundle).
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.compiled import fit_compiled
from pocketlens.core.decode import Picture, check_pixels, decode, upright_image
from pocketlens.core.picture_gate import refusal
from pocketlens.core.picture_source import name_of, read_bytes
from pocketlens.core.preprocess_spec import SPEC_VERSION, PreprocessSpec
from pocketlens.core.resample import resample_exact

__all__ = [
    "SPEC_VERSION",
    "Picture",
    "Placement",
    "PreprocessSpec",
    "decode",
    "fit_pixels",
    "fit_pixels_exact",
    "place",
    "preprocess",
    "read_bytes",
]

# Enlarging a long strip only to keep its middle would take gigabytes: where a step has more pixels
# than this, the window alone is computed, in integer numpy.
_MAX_STEP_PIXELS: Final = 2**26

_RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Placement(NamedTuple):
    """Where a picture goes: it is resized to (rows, columns), then shifted onto the target.

    Attributes:
        rows: height after resizing, in pixels.
        columns: width after resizing, in pixels.
        top: row of the resized picture that lands on row 0; negative when there is padding.
        left: column of the resized picture that lands on column 0; negative when there is padding.
    """

    rows: int
    columns: int
    top: int
    left: int


def place(height: int, width: int, spec: PreprocessSpec) -> Placement:
    """Return where a picture of `height` x `width` pixels goes; the rules are in the module's docstring."""
    rows, columns = spec.height_px, spec.width_px
    by_width = columns * height - rows * width
    if (spec.fit == "crop" and by_width >= 0) or (spec.fit == "pad" and by_width <= 0):
        rows = max(_near(height * columns, width), 1)
    elif spec.fit != "squash":
        columns = max(_near(width * rows, height), 1)
    if spec.fit == "pad":
        return Placement(rows, columns, -((spec.height_px - rows) // 2), -((spec.width_px - columns) // 2))
    return Placement(rows, columns, (rows - spec.height_px) // 2, (columns - spec.width_px) // 2)


def _near(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def preprocess(source: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return the pixels that a graph takes: uint8 (height_px, width_px, 3), RGB, C-contiguous.

    Args:
        source: see `Picture`.
        spec: the bundle's, or the recipe's.

    Raises:
        PictureError: the picture was refused; `.kind` says why.
    """
    image = upright_image(source, spec)
    try:
        return _fit(image, spec)
    except MemoryError as error:
        raise refusal(error, "upright pixels", name_of(source), spec) from error


def fit_pixels(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return `pixels`, uint8 (H, W, 3), placed and resized to uint8 (height_px, width_px, 3).

    Uses the compiled resampler where there is one, Pillow's otherwise. `fit_pixels_exact` gives the same bits.

    Raises:
        PictureError: of kind `unknown_type` (not uint8) or `bad_shape`.
    """
    check_pixels(pixels)
    compiled = fit_compiled(pixels, spec)
    return _fit_with_pillow(Image.fromarray(pixels), spec) if compiled is None else compiled


def _fit(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    compiled = fit_compiled(image, spec)
    return _fit_with_pillow(image, spec) if compiled is None else compiled


def _fit_with_pillow(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    placement = place(image.height, image.width, spec)
    top, left = max(placement.top, 0), max(placement.left, 0)
    rows, columns = min(placement.rows, spec.height_px), min(placement.columns, spec.width_px)
    if max(image.height * placement.columns, placement.rows * columns) > _MAX_STEP_PIXELS:
        return fit_pixels_exact(np.asarray(image), spec)
    resampling = _RESAMPLING[spec.filter]
    # One axis a call: Pillow 13 swaps the passes where height shrinks more than width (its pull
    # request 9549), and rounding to uint8 between them makes that visible. The spec fixes them.
    wide = image.resize((placement.columns, image.height), resampling)
    kept = wide if columns == placement.columns else wide.crop((left, 0, left + columns, wide.height))
    tall = kept.resize((columns, placement.rows), resampling)
    resized = tall if rows == placement.rows else tall.crop((0, top, columns, top + rows))
    return _pad(np.asarray(resized), placement, spec) if spec.fit == "pad" else np.array(resized)


def fit_pixels_exact(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return what `fit_pixels` returns, bit for bit, from two integer matrix products in numpy.

    This is the spec, executable: see `pocketlens.core.resample` for the arithmetic.

    Raises:
        PictureError: of kind `unknown_type` (not uint8) or `bad_shape`.
    """
    check_pixels(pixels)
    placement = place(pixels.shape[0], pixels.shape[1], spec)
    top, left = max(placement.top, 0), max(placement.left, 0)
    resized = resample_exact(
        pixels,
        height_px=placement.rows,
        width_px=placement.columns,
        filter_name=spec.filter,
        rows=slice(top, top + spec.height_px),
        columns=slice(left, left + spec.width_px),
    )
    return _pad(resized, placement, spec) if spec.fit == "pad" else resized


def _pad(resized: NDArray[np.uint8], placement: Placement, spec: PreprocessSpec) -> NDArray[np.uint8]:
    canvas = np.empty((spec.height_px, spec.width_px, 3), np.uint8)
    canvas[:] = spec.pad_colour
    top, left = -placement.top, -placement.left
    canvas[top : top + placement.rows, left : left + placement.columns] = resized
    return canvas
