"""Seeded augmentations, stored as seven numbers instead of pixels.

Two policies. `still` is for captions that say *left of* and name colours: nothing flips or zooms, a small shift, a
gain and an offset of brightness. `photo` crops, zooms and mirrors as well (Szegedy et al. 2015, section 6; the ranges
are smaller than for classification, since a caption speaks of the whole picture). The same parameters applied to the
same pixels give the same bytes.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["IDENTITY", "WIDTH", "Policy", "View", "apply", "parameters"]

Policy = Literal["still", "photo"]

_SHIFT = 0.06
_GAIN = 0.15
_OFFSET = 12.0
_AREA = (0.5, 1.0)
_RATIO = (3 / 4, 4 / 3)


class View(NamedTuple):
    """The parameters of one view.

    Attributes:
        top, left, height, width: the part that is shown, in shares of the picture's sides; it may reach beyond them.
        flip: 1 for mirrored left to right.
        gain, offset: of brightness: `gain * level + offset`.
    """

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: float = 0.0
    gain: float = 1.0
    offset: float = 0.0


WIDTH: Final = len(View._fields)
"""How many numbers a view takes."""

IDENTITY: Final = np.array(View(), dtype=np.float32)
"""The parameters that change nothing, `(7,)` float32."""


def parameters(seed: int, index: int, view: int, *, policy: Policy = "still") -> NDArray[np.float32]:
    """Return the `(7,)` float32 parameters of one view of one picture, see `View`; view 0 is `IDENTITY`."""
    if view == 0:
        return IDENTITY
    rng = np.random.default_rng((seed, index, view))
    down, right, gain, offset = rng.uniform(-1.0, 1.0, size=4)
    light = {"gain": 1.0 + _GAIN * gain, "offset": _OFFSET * offset}
    if policy == "still":
        return np.array(View(top=-_SHIFT * down, left=-_SHIFT * right, **light), dtype=np.float32)
    area, ratio = rng.uniform(*_AREA), np.exp(rng.uniform(*np.log(_RATIO)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    top, left = (1.0 - height) * (down + 1.0) / 2, (1.0 - width) * (right + 1.0) / 2
    return np.array(View(top, left, height, width, float(rng.random() < 0.5), **light), dtype=np.float32)


def apply(pixels: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return `pixels (B, H, W, 3)` with row b changed by `params[b]`; `params` is `(B, 7)`.

    Pixels beyond the picture repeat its edge. A part that is smaller than the picture is enlarged with antialiased
    bilinear resampling.
    """
    out = np.empty_like(pixels)
    for index, (picture, row) in enumerate(zip(pixels, params, strict=True)):
        view = View(*map(float, row))
        shown = _shifted(picture, view) if view.height == view.width == 1.0 else _zoomed(picture, view)
        levels: NDArray[np.uint8] = np.clip(np.rint(np.arange(256) * row[5] + row[6]), 0, 255).astype(np.uint8)
        out[index] = levels[shown[:, ::-1] if view.flip else shown]
    return out


def _shifted(picture: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    rows = np.clip(np.arange(height) + round(view.top * height), 0, height - 1)
    columns = np.clip(np.arange(width) + round(view.left * width), 0, width - 1)
    shown: NDArray[np.uint8] = picture[rows[:, None], columns[None, :]]
    return shown


def _zoomed(picture: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    top, left = max(view.top, 0.0), max(view.left, 0.0)
    bottom, right = min(view.top + view.height, 1.0), min(view.left + view.width, 1.0)
    box = (left * width, top * height, right * width, bottom * height)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box))
