"""Parametric surfaces as dense point clouds with normals, the raw material of the models.

A model is a list of `Patch`. Model space: x right, y up, z towards the viewer, feet at y = 0, about
one unit high. Every builder samples densely enough for `sprites.SPRITE_PX`.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DENSITY", "Material", "Patch", "ball", "box", "flat", "loft", "puff", "revolve", "tube"]

Floats = npt.NDArray[np.float32]

DENSITY: Final = 230
"""Samples per model unit along a line."""


class Material(NamedTuple):
    """How a patch answers light.

    Attributes:
        tint: weight of the object's own colour.
        rgb: fixed colour, linear light, added to the tinted one.
        gloss: strength of the highlight.
        glow: share of the albedo that shines by itself in the dark.
    """

    tint: float = 1.0
    rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gloss: float = 0.35
    glow: float = 0.0


class Patch(NamedTuple):
    """Points `(n, 3)`, unit normals `(n, 3)` and what they are made of."""

    points: Floats
    normals: Floats
    material: Material


def box(
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    material: Material,
    *,
    bevel: float = 0.03,
) -> Patch:
    """Return a box whose edges are rounded with radius `bevel`."""
    h = np.asarray(half, dtype=np.float32)
    points = []
    for axis in range(3):
        a, b = [i for i in range(3) if i != axis]
        u, v = np.meshgrid(_line(-h[a], h[a]), _line(-h[b], h[b]))
        for sign in (-1, 1):
            face = np.empty((u.size, 3), dtype=np.float32)
            face[:, a], face[:, b], face[:, axis] = u.ravel(), v.ravel(), sign * h[axis]
            points.append(face)
    cloud = np.concatenate(points)
    core = np.clip(cloud, -(h - bevel), h - bevel)
    normals = _unit(cloud - core)
    return Patch(core + bevel * normals + np.asarray(centre, dtype=np.float32), normals, material)


def ball(centre: tuple[float, float, float], radii: tuple[float, float, float], material: Material) -> Patch:
    """Return an ellipsoid."""
    r = np.asarray(radii, dtype=np.float32)
    steps = max(12, int(DENSITY * np.pi * r.max()))
    theta, phi = np.meshgrid(np.linspace(0, np.pi, steps), np.linspace(0, 2 * np.pi, 2 * steps))
    unit = np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], axis=-1).reshape(-1, 3)
    unit = unit.astype(np.float32)
    return Patch(unit * r + np.asarray(centre, dtype=np.float32), _unit(unit / r), material)


def revolve(
    profile: list[tuple[float, float]],
    material: Material,
    *,
    at: tuple[float, float] = (0.0, 0.0),
    smooth: bool = False,
    inward: bool = False,
) -> Patch:
    """Return the surface that the polyline `profile` of (radius, y), bottom to top, sweeps.

    Args:
        profile: at least two corners.
        material: of the whole surface.
        at: x and z of the axis.
        smooth: round the corners of the polyline.
        inward: normals look to the axis, as inside a cup.
    """
    corners = np.asarray(profile, dtype=np.float64)
    line = _resample(corners)
    if smooth:
        width = max(3, len(line) // 8)
        padded = np.pad(line, ((width, width), (0, 0)), mode="reflect", reflect_type="odd")
        kernel = np.hanning(2 * width + 1)
        kernel /= kernel.sum()
        line = np.stack([np.convolve(padded[:, i], kernel, mode="valid") for i in range(2)], axis=1)
    slope = np.gradient(line, axis=0)
    turns = max(24, int(2 * np.pi * DENSITY * float(line[:, 0].max())))
    angle = np.linspace(0, 2 * np.pi, turns, endpoint=False)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    zero = np.zeros_like(cos)
    points = np.stack([line[:, 0] * cos + at[0], line[:, 1] + zero, line[:, 0] * sin + at[1]], axis=-1).reshape(-1, 3)
    normals = np.stack([slope[:, 1] * cos, -slope[:, 0] + zero, slope[:, 1] * sin], axis=-1).reshape(-1, 3)
    return Patch(points.astype(np.float32), _unit(normals) * (-1 if inward else 1), material)


def puff(
    outline: npt.NDArray[np.float64],
    thickness: float,
    material: Material,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    z: float = 0.0,
    power: float = 2.5,
) -> Patch:
    """Return a cushion: the closed `outline` `(n, 2)` blown up to half-`thickness` at `centre`.

    The outline must be star-shaped as seen from `centre`.
    """
    line = _resample(np.concatenate([outline, outline[:1]]))
    centre_xy = np.asarray(centre)
    reach = float(np.abs(line - centre_xy).max())
    radius = np.sin(np.linspace(0, np.pi / 2, max(16, int(DENSITY * 1.8 * reach))))[:, None, None]
    flat_xy = centre_xy + radius * (line - centre_xy)
    lift = thickness * np.sqrt(np.clip(1 - radius**power, 0, None)) * np.ones((1, len(line), 1))
    patches = []
    for sign in (-1, 1):
        grid = np.concatenate([flat_xy, z + sign * lift], axis=-1)
        normal = np.cross(np.gradient(grid, axis=0), np.gradient(grid, axis=1))
        normal[0] = (0, 0, 1)
        normal *= np.where(normal[..., 2:] * sign < 0, -1, 1)
        patches.append((grid.reshape(-1, 3), normal.reshape(-1, 3)))
    points = np.concatenate([p for p, _ in patches]).astype(np.float32)
    return Patch(points, _unit(np.concatenate([n for _, n in patches])), material)


def flat(corners: list[tuple[float, float, float]], material: Material) -> Patch:
    """Return a flat triangle or quadrilateral; the normal follows the right-hand rule."""
    c = np.asarray(corners, dtype=np.float64)
    if len(c) == 3:
        c = np.concatenate([c, c[2:]])
    length = max(np.linalg.norm(c[1] - c[0]), np.linalg.norm(c[2] - c[1]), np.linalg.norm(c[3] - c[0]))
    t = np.linspace(0, 1, max(4, int(DENSITY * length)))
    u, v = t[:, None, None], t[None, :, None]
    points = (1 - u) * ((1 - v) * c[0] + v * c[3]) + u * ((1 - v) * c[1] + v * c[2])
    points = points.reshape(-1, 3).astype(np.float32)
    normal = _unit(np.cross(c[1] - c[0], c[2] - c[0])[None])
    return Patch(points, np.repeat(normal, len(points), axis=0), material)


def loft(grid: npt.NDArray[np.float64], material: Material) -> Patch:
    """Return the surface through the rings `grid` `(n, m, 3)`; normals point away from its middle."""
    around = max(np.linalg.norm(np.diff(ring, axis=0), axis=1).sum() for ring in grid)
    along = max(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in grid.swapaxes(0, 1))
    grid = np.stack([_resample(ring, int(DENSITY * around)) for ring in grid])
    grid = np.stack([_resample(line, int(DENSITY * along)) for line in grid.swapaxes(0, 1)], axis=1)
    normal = np.cross(np.gradient(grid, axis=0), np.gradient(grid, axis=1))
    away = ((grid - grid.mean(axis=(0, 1))) * normal).sum(axis=-1, keepdims=True)
    normal *= np.where(away < 0, -1, 1)
    return Patch(grid.reshape(-1, 3).astype(np.float32), _unit(normal.reshape(-1, 3)), material)


def tube(path: list[tuple[float, float, float]], radius: float, material: Material) -> Patch:
    """Return a tube of `radius` along the polyline `path`."""
    line = _resample(np.asarray(path, dtype=np.float64))
    along = _unit(np.gradient(line, axis=0)).astype(np.float64)
    side = np.cross(along, (0.0, 0.0, 1.0))
    weak = np.linalg.norm(side, axis=1) < 0.1
    side[weak] = np.cross(along[weak], (0.0, 1.0, 0.0))
    side = _unit(side).astype(np.float64)
    up = np.cross(side, along)
    angle = np.linspace(0, 2 * np.pi, max(10, int(DENSITY * 2 * np.pi * radius)))[:, None, None]
    normals = (np.cos(angle) * side + np.sin(angle) * up).reshape(-1, 3)
    points = np.tile(line, (len(angle), 1)) + radius * normals
    return Patch(points.astype(np.float32), _unit(normals), material)


def _line(start: float, stop: float) -> Floats:
    return np.linspace(start, stop, max(4, int(DENSITY * (stop - start))), dtype=np.float32)


def _resample(corners: npt.NDArray[np.float64], count: int = 0) -> npt.NDArray[np.float64]:
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], count or max(6, int(DENSITY * lengths[-1])))
    return np.stack([np.interp(at, lengths, column) for column in corners.T], axis=1)


def _unit(vectors: npt.NDArray[np.floating]) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Floats = (vectors / np.maximum(length, 1e-9)).astype(np.float32)
    return units
