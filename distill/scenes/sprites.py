"""Turns a model into a sprite: normals, albedo and coverage per pixel, ready to be lit.

A sprite is made once per kind and pose and lit for every picture, so that a picture costs little
and the light still falls as it should.
"""

from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pocketlens.distill.scenes.models import MODELS, YAWS
from pocketlens.distill.scenes.surfaces import Patch

__all__ = ["CHANNELS", "PITCH_DEG", "SPRITE_PX", "Sprite", "sprite"]

Floats = npt.NDArray[np.float32]

SPRITE_PX: Final = 120
"""Pixels per model unit."""

PITCH_DEG: Final = 13.0
"""How steeply the camera looks down."""

CHANNELS: Final = ("alpha", "nx", "ny", "nz", "tint", "red", "green", "blue", "gloss", "glow", "open")
"""Planes of a sprite; all but alpha are multiplied by alpha. `open` is the share of the sky seen."""

_LEFT, _BOTTOM, _SIDE = -0.8, -0.25, 1.75
_LEVELS: Final = 4


class Sprite(NamedTuple):
    """One view of one model.

    Attributes:
        levels: planes `(len(CHANNELS), H, W)` float32, each half as large as the one before.
        left: model x of the left edge; the foot is at 0.
        top: model height of the upper edge.
        width: in model units.
        height: in model units.
    """

    levels: tuple[Floats, ...]
    left: float
    top: float
    width: float
    height: float


def sprite(kind: str, pose: int) -> Sprite:
    """Return the sprite of `kind` seen in `pose`; kept for the life of the process."""
    return _views(kind)[pose]


@cache
def _views(kind: str) -> tuple[Sprite, ...]:
    model = MODELS[kind]()
    return tuple(_crop(_splat(model, yaw)) for yaw in YAWS[kind])


def _crop(planes: Floats) -> Sprite:
    rows = np.flatnonzero(planes[0].any(axis=1))
    columns = np.flatnonzero(planes[0].any(axis=0))
    multiple = 2 ** (_LEVELS - 1)
    r0, r1 = _grow(rows[0], rows[-1] + 1, multiple, planes.shape[1])
    c0, c1 = _grow(columns[0], columns[-1] + 1, multiple, planes.shape[2])
    level = np.ascontiguousarray(planes[:, r0:r1, c0:c1])
    levels = [level]
    for _ in range(_LEVELS - 1):
        c, h, w = level.shape
        level = level.reshape(c, h // 2, 2, w // 2, 2).mean(axis=(2, 4), dtype=np.float32)
        levels.append(np.ascontiguousarray(level))
    return Sprite(
        levels=tuple(levels),
        left=_LEFT + c0 / SPRITE_PX,
        top=_BOTTOM + _SIDE - r0 / SPRITE_PX,
        width=(c1 - c0) / SPRITE_PX,
        height=(r1 - r0) / SPRITE_PX,
    )


def _grow(start: int, stop: int, multiple: int, limit: int) -> tuple[int, int]:
    start = max(0, int(start) - 1)
    size = -(-(int(stop) + 1 - start) // multiple) * multiple
    return (start, start + size) if start + size <= limit else (limit - size, limit)


def _splat(patches: list[Patch], yaw_deg: float) -> Floats:
    """Return the planes `(C, H, W)` of the nearest surface per pixel (a z-buffer of points)."""
    side = round(_SIDE * SPRITE_PX)
    turn = _camera(yaw_deg)
    pixels, depths, normals, skies = [], [], [], []
    materials: list[npt.NDArray[np.int64]] = []
    for patch in patches:
        facing = patch.normals @ turn.T
        front = facing[:, 2] > -0.02
        points = patch.points[front] @ turn.T
        column = ((points[:, 0] - _LEFT) * SPRITE_PX).astype(np.int32).clip(0, side - 1)
        row = ((_BOTTOM + _SIDE - points[:, 1]) * SPRITE_PX).astype(np.int32).clip(0, side - 1)
        pixels.append(row * side + column)
        depths.append(points[:, 2])
        normals.append(facing[front])
        skies.append(patch.points[front, 1])
        materials.append(np.full(len(points), len(materials), dtype=np.int64))
    pixel = np.concatenate(pixels)
    order = np.argsort(np.concatenate(depths), kind="stable")
    nearest = np.full(side * side, -1, dtype=np.int64)
    nearest[pixel[order]] = order  # the last write, the nearest point, stays
    hit = np.flatnonzero(nearest >= 0)
    shown = nearest[hit]
    planes = np.zeros((len(CHANNELS), side * side), dtype=np.float32)
    planes[0, hit] = 1
    planes[1:4, hit] = np.concatenate(normals)[shown].T
    looks = np.asarray([(m.tint, *m.rgb, m.gloss, m.glow) for m in (p.material for p in patches)])
    planes[4:10, hit] = looks[np.concatenate(materials)[shown]].T
    planes[10, hit] = 0.5 + 0.5 * np.clip(np.concatenate(skies)[shown] / 0.35, 0, 1) ** 0.7
    return planes.reshape(len(CHANNELS), side, side)


def _camera(yaw_deg: float) -> Floats:
    yaw, pitch = np.radians([yaw_deg, PITCH_DEG])
    about_y = np.asarray([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.asarray([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turned: Floats = (about_x @ about_y).astype(np.float32)
    return turned
