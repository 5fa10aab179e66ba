"""Decoded pixels that golden cases start from: cut from rendered scenes, so they are ours to ship (CC0)."""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["TARGET", "raw_sources", "scene_window"]

TARGET: Final = (24, 32)
"""Height and width of the target of most decoded cases, pixels: small, and neither square nor prime."""

_SCENE_PX: Final = 96
_CONTRAST: Final = 4
# Drawing a scene takes a second: windows of different sizes share three.
_SCENES: Final = 3


def scene_window(seed: int, height: int, width: int, *, size_px: int = _SCENE_PX) -> NDArray[np.uint8]:
    """Return the busiest window (height, width, 3) of a scene of the test split.

    Busiest: where neighbouring levels differ most, for a shift of half a pixel shows in detail only.
    """
    picture = _scene(seed % _SCENES, size_px)
    levels = picture.astype(np.float64).sum(axis=2)
    busy = np.abs(np.diff(levels, axis=0, prepend=levels[:1])) + np.abs(np.diff(levels, axis=1, prepend=levels[:, :1]))
    total = np.pad(busy, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


@lru_cache(maxsize=8)
def _scene(seed: int, size_px: int) -> NDArray[np.uint8]:
    from pocketlens.distill.scenes.grammar import sample_scene
    from pocketlens.distill.scenes.render import render

    return render(sample_scene(seed, split="test"), size_px=size_px)


def raw_sources(seed: int) -> dict[str, NDArray[Any]]:
    """Return stored samples by name: uint8 or uint16, (h, w) grey, (h, w, C) with C = 2, 3 or 4."""
    height, width = TARGET
    plain, other = scene_window(seed, height, width), scene_window(seed + 1, height, width)
    photo = scene_window(seed + 2, 45, 64)
    alpha, grey = _stretched(other), _stretched(plain)
    return {
        "plain": plain,
        "grey": grey,
        "grey-alpha": np.dstack([grey, alpha]),
        "rgba": np.dstack([plain, alpha]),
        # Low bytes far from the high ones: else v >> 8 and round(v / 257) are the same.
        "grey16": _sixteen(grey, 255 - grey),
        "rgb16": _sixteen(plain, 255 - plain),
        "tall": scene_window(seed + 4, 45, width),
        "long": scene_window(seed + 5, height, 61),
        "low": scene_window(seed + 6, 13, width),
        "narrow": scene_window(seed + 7, height, 13),
        "small": scene_window(seed + 8, 13, 17),
        "photo": photo,
        "portrait": scene_window(seed + 9, 61, 45),
        # Overshoot of both passes must be cut off in between: hard edges up to black and white.
        "edges": _hard(scene_window(seed + 10, 35, 41)),
        "edges-small": _hard(scene_window(seed + 11, 11, 15)),
        "column": scene_window(seed + 12, 40, 1),
        "row": scene_window(seed + 13, 1, 40),
    }


def _stretched(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightness of `pixels`, (h, w), spread over 0..255, both ends taken."""
    levels = pixels.astype(np.float64).mean(axis=2)
    spread = (levels - levels.min()) / max(float(np.ptp(levels)), 1.0)
    stretched: NDArray[np.uint8] = np.rint(spread * 255).astype(np.uint8)
    return stretched


def _sixteen(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    joined: NDArray[np.uint16] = (high.astype(np.uint16) << np.uint16(8)) | low
    return joined


def _hard(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    levels = pixels.astype(np.int32)
    centre = levels.mean(axis=(0, 1))
    hard: NDArray[np.uint8] = np.clip((levels - centre) * _CONTRAST + 128, 0, 255).astype(np.uint8)
    return hard
