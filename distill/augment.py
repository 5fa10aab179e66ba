"""Seeded augmentations, stored as four numbers instead of pixels.

Captions say *left of* and name colours, so nothing here flips or shifts hues: a small shift, a gain
and an offset of brightness. The same parameters applied to the same pixels give the same bytes.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDENTITY", "apply", "parameters"]

_SHIFT = 0.06
_GAIN = 0.15
_OFFSET = 12.0

IDENTITY = np.array([0.0, 0.0, 1.0, 0.0], dtype=np.float32)
"""The parameters that change nothing: shift down, shift right (shares of the side), gain, offset."""


def parameters(seed: int, index: int, view: int) -> NDArray[np.float32]:
    """Return the `(4,)` float32 parameters of one view of one picture; view 0 is `IDENTITY`."""
    if view == 0:
        return IDENTITY
    rng = np.random.default_rng((seed, index, view))
    down, right, gain, offset = rng.uniform(-1.0, 1.0, size=4)
    return np.array([_SHIFT * down, _SHIFT * right, 1.0 + _GAIN * gain, _OFFSET * offset], dtype=np.float32)


def apply(pixels: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return `pixels (B, H, W, 3)` with row b changed by `params[b]`; `params` is `(B, 4)`.

    Pixels that a shift uncovers repeat the edge.
    """
    out = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    for index, (picture, (down, right, gain, offset)) in enumerate(zip(pixels, params, strict=True)):
        rows = np.clip(np.arange(height) - round(float(down) * height), 0, height - 1)
        columns = np.clip(np.arange(width) - round(float(right) * width), 0, width - 1)
        levels = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
        out[index] = levels[picture[rows[:, None], columns[None, :]]]
    return out
