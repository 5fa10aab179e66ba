"""Renders a scene: backdrop, shadows, objects lit one by one, and what a lens adds."""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pocketlens.core.errors import DataError
from pocketlens.distill.scenes.backdrop import backdrop
from pocketlens.distill.scenes.grammar import Scene, SceneObject
from pocketlens.distill.scenes.sprites import Sprite, sprite

__all__ = ["PALETTE", "render"]

Floats = npt.NDArray[np.float32]

PALETTE: Final = {
    "red": (214, 30, 36),
    "orange": (250, 122, 10),
    "yellow": (252, 214, 24),
    "green": (10, 150, 66),
    "blue": (24, 86, 222),
    "purple": (126, 38, 178),
    "pink": (252, 124, 178),
    "white": (246, 246, 246),
}
"""Colour of the objects' paint, gamma 2."""


class _Rig(NamedTuple):
    key: tuple[float, float, float]
    sky: tuple[float, float, float]
    bounce: tuple[float, float, float]
    height: float  # y of the light's direction
    shadow: float
    glow: float


# The tints are milder than the backdrop's, so that an object's colour can be told at any hour.
_RIGS: Final = {
    "day": _Rig((0.86, 0.83, 0.76), (0.37, 0.41, 0.48), (0.20, 0.20, 0.17), 0.72, 0.50, 0.0),
    "sunset": _Rig((0.90, 0.68, 0.46), (0.34, 0.30, 0.37), (0.22, 0.15, 0.11), 0.42, 0.44, 0.6),
    "night": _Rig((0.54, 0.53, 0.58), (0.19, 0.20, 0.27), (0.06, 0.065, 0.09), 0.66, 0.52, 1.4),
}
_BOUNCE: Final = {
    "grass": (0.8, 1.1, 0.5),
    "beach": (1.3, 1.15, 0.9),
    "snow": (1.7, 1.75, 1.9),
    "floor": (1.2, 0.85, 0.55),
    "road": (0.8, 0.8, 0.85),
    "lake": (0.5, 0.8, 1.1),
}
_MIN_PX: Final = 16


def render(scene: Scene, *, size_px: int = 128) -> npt.NDArray[np.uint8]:
    """Return the picture `(size_px, size_px, 3)`, uint8 RGB.

    The picture does not depend on `size_px` but for its sharpness: positions, textures, blur and
    grain are all fractions of the side.

    Args:
        scene: what to show.
        size_px: the side, a multiple of 32 and at least 32.

    Raises:
        DataError: `size_px` is not such a number.
    """
    if size_px < _MIN_PX * 2 or size_px % 32:
        raise DataError(
            "size_px",
            expected="a multiple of 32, at least 32",
            found=str(size_px),
            remedy="Choose another size.",
        )
    canvas = _crop(scene, size_px)
    for thing in scene.objects:
        _shade_ground(canvas, scene, thing)
    for thing in scene.objects:
        if scene.background == "lake":
            _draw(canvas, scene, thing, mirrored_in_water=True)
        _draw(canvas, scene, thing)
    return _expose(canvas, scene)


def _crop(scene: Scene, size_px: int) -> Floats:
    wide = backdrop(scene.background, scene.light, scene.horizon, scene.variant, size_px)
    if scene.light_x > 0:  # the sun or moon is painted on the left
        wide = wide[:, ::-1]
    left = scene.shift * size_px // 32
    return wide[:, left : left + size_px].astype(np.float32)


def _shade_ground(canvas: Floats, scene: Scene, thing: SceneObject) -> None:
    """Darken the ground: a tight shadow at the foot and a long soft one away from the light."""
    size = canvas.shape[0]
    view = sprite(thing.kind, thing.pose)
    rig = _RIGS[scene.light]
    floating = thing.kind == "balloon"
    half = thing.scale * view.width * (0.30 if floating else 0.43)
    away = -np.sign(scene.light_x) * (1.05 - rig.height) * abs(scene.light_x)
    soft = 0.45 if scene.background == "lake" else 1.0
    lean = away * thing.scale * 0.8
    for dx, dy, rx, ry, strength in (
        (0.0, -0.02, half * 1.02, half * 0.34, 1.25 if not floating else 0.3),
        (lean, -0.05, half * 1.15 + abs(lean) * 0.6, half * 0.42, 0.75),
    ):
        cx, cy = thing.x + dx, thing.y + dy * thing.scale
        x0, x1 = max(0, int((cx - 2 * rx) * size)), min(size, int((cx + 2 * rx) * size) + 1)
        y0, y1 = max(0, int((cy - 2 * ry) * size)), min(size, int((cy + 2 * ry) * size) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        u = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size - cx) / rx
        v = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / size - cy) / ry
        fall = np.exp(-1.1 * (u[None, :] ** 2 + v[:, None] ** 2) ** 1.4)
        canvas[y0:y1, x0:x1] *= (1 - min(0.92, rig.shadow * strength * soft) * fall)[..., None]


def _draw(canvas: Floats, scene: Scene, thing: SceneObject, *, mirrored_in_water: bool = False) -> None:
    size = canvas.shape[0]
    view = sprite(thing.kind, thing.pose)
    left = thing.x + (-(view.left + view.width) if thing.mirrored else view.left) * thing.scale
    width, height = view.width * thing.scale, view.height * thing.scale
    top = thing.y - view.top * thing.scale
    if mirrored_in_water:
        top = thing.y - (view.height - view.top) * thing.scale * 0.6
        height *= 0.6
    x0, x1 = max(0, int(left * size) - 1), min(size, int((left + width) * size) + 2)
    y0, y1 = max(0, int(top * size) - 1), min(size, int((top + height) * size) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    level = _level(view, size * thing.scale)
    across = _taps(level.shape[2], (left * size, width * size), (x0, x1), reverse=thing.mirrored)
    down = _taps(level.shape[1], (top * size, height * size), (y0, y1), reverse=mirrored_in_water)
    planes = np.matmul(np.matmul(down, level), across.T)
    colour, alpha = _light(planes, scene, thing)
    if mirrored_in_water:
        rows = (np.arange(y0, y1, dtype=np.float32) + 0.5) / size
        fade = np.clip(0.62 - 0.5 * (rows - thing.y) / max(height, 1e-6), 0, 0.62)
        wave = 0.82 + 0.18 * np.sin((rows - thing.y) * 170)
        fade = np.where(rows < thing.y - 0.03, 0, fade * wave)[:, None]
        colour, alpha = colour * fade, alpha * fade
    target = canvas[y0:y1, x0:x1]
    target *= 1 - alpha[..., None]
    target += colour.transpose(1, 2, 0)


def _light(planes: Floats, scene: Scene, thing: SceneObject) -> tuple[Floats, Floats]:
    """Return light `(3, h, w)`, multiplied by coverage, and coverage `(h, w)`."""
    rig = _RIGS[scene.light]
    alpha = np.clip(planes[0], 0, 1)
    nx, ny, nz = planes[1], planes[2], planes[3]
    if thing.mirrored:
        nx = -nx
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
    nx, ny, nz = nx / length, ny / length, nz / length
    lx, ly = scene.light_x * 0.85, rig.height
    lz = 0.62
    norm = float(np.sqrt(lx * lx + ly * ly + lz * lz))
    lx, ly, lz = lx / norm, ly / norm, lz / norm
    facing = nx * lx + ny * ly + nz * lz
    key = np.clip(facing * 0.86 + 0.14, 0, None)
    hx, hy, hz = lx, ly, lz + 1.0  # towards the half vector; the viewer is at +z
    half = float(np.sqrt(hx * hx + hy * hy + hz * hz))
    shine = np.clip((nx * hx + ny * hy + nz * hz) / half, 0, 1) ** 2
    shine = shine * shine
    shine = shine * shine
    shine = shine * shine * shine * shine  # cos ** 32
    up = 0.5 + 0.5 * ny
    rim = (1 - np.clip(nz, 0, 1)) ** 3 * up
    open_sky = planes[10] / (planes[0] + 1e-6)
    red_green_blue = np.asarray(PALETTE[thing.colour], dtype=np.float32) / 255
    paint = red_green_blue * red_green_blue
    bounce = _BOUNCE[scene.background]
    out = np.empty((3, *alpha.shape), dtype=np.float32)
    gloss = planes[8]
    for c in range(3):
        albedo = planes[5 + c] + planes[4] * paint[c]
        light = rig.key[c] * key + (rig.sky[c] * up + rig.bounce[c] * bounce[c] * (1 - up)) * open_sky
        light += rig.glow * planes[9] / (planes[0] + 1e-6)
        out[c] = albedo * light + gloss * (0.85 * rig.key[c] * shine + 0.35 * rig.sky[c] * rim)
    return out, alpha


def _level(view: Sprite, unit_px: float) -> Floats:
    """Return the smallest level that still has a pixel for each pixel of the picture."""
    chosen = view.levels[0]
    for level in view.levels:
        if level.shape[2] / view.width < unit_px:
            break
        chosen = level
    return chosen


def _taps(source: int, line: tuple[float, float], pixels: tuple[int, int], *, reverse: bool) -> Floats:
    """Return weights `(pixels, source)` that resample a line of samples laid over `line`.

    A tent as wide as the larger of both pixels; outside the line the weights vanish, which gives
    smooth edges. `line` is (start, length) and `pixels` (first, last) in pixels of the picture.
    """
    start, length = line
    ratio = source / length
    at = (np.arange(*pixels, dtype=np.float32) + 0.5 - start) * ratio - 0.5
    if reverse:
        at = source - 1 - at
    reach = max(1.0, ratio)
    margin = int(reach) + 1
    taps = np.arange(-margin, source + margin, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - taps) / reach)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    normal: Floats = np.ascontiguousarray(weights[:, margin:-margin], dtype=np.float32)
    return normal


@lru_cache(maxsize=8)
def _corners(size_px: int) -> Floats:
    """Return the squared distance from the middle, 1 in the corners, `(size_px, size_px, 1)`."""
    line = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1
    squared = (line[:, None] ** 2 + line[None, :] ** 2) / 2
    return squared[..., None].astype(np.float32)


@lru_cache(maxsize=64)
def _grain(tile: int, size_px: int) -> Floats:
    """Return grain of unit variance on a grid of 128 cells, `(size_px, size_px, 1)`."""
    cells = np.random.default_rng([71, tile]).standard_normal((128, 128)).astype(np.float32)
    image = Image.fromarray(cells).resize((size_px, size_px), Image.Resampling.BILINEAR)
    grain: Floats = np.asarray(image)[..., None]
    return grain


def _expose(canvas: Floats, scene: Scene) -> npt.NDArray[np.uint8]:
    size = canvas.shape[0]
    canvas *= scene.exposure * (1 - scene.vignette * _corners(size))
    # A soft shoulder keeps highlights from clipping to flat white.
    np.maximum(canvas, 0, out=canvas)
    bright = canvas > 0.8
    canvas[bright] = 0.8 + 0.2 * np.tanh((canvas[bright] - 0.8) / 0.2)
    np.sqrt(canvas, out=canvas)
    grain = _grain(scene.seed % 8, size)
    roll = (scene.seed // 8 % 32) * size // 32
    canvas += scene.noise * np.roll(grain, roll, axis=1)
    picture = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    if scene.blur * size < 0.05:
        return picture
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(scene.blur * size))
    return np.array(blurred)
