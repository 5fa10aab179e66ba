"""Paints what lies behind the objects: sky, hills, and the ground in perspective.

Pictures here are linear light (gamma 2 stands in for the sRGB curve), float32 `(H, W, 3)`, and
half as wide again as the scene, so that scenes can look at different parts of them.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["HORIZONS", "SPAN", "backdrop"]

Floats = npt.NDArray[np.floating[Any]]

HORIZONS: Final = (0.40, 0.345, 0.29)
"""Height of the horizon by camera index, fraction of the side from the top."""

SPAN: Final = 1.5
"""Width of a backdrop over its height."""

_Colour = tuple[int, int, int]

_SKY: Final[dict[str, tuple[_Colour, _Colour]]] = {  # top, horizon
    "day": ((74, 142, 222), (203, 228, 246)),
    "sunset": ((84, 78, 140), (255, 176, 104)),
    "night": ((10, 14, 40), (44, 58, 104)),
}
_GROUND: Final[dict[str, tuple[_Colour, _Colour]]] = {  # far, near
    "grass": ((150, 176, 92), (104, 148, 58)),
    "beach": ((228, 206, 160), (222, 192, 140)),
    "snow": ((222, 232, 244), (238, 243, 250)),
    "floor": ((176, 120, 72), (158, 100, 56)),
    "road": ((132, 134, 140), (104, 106, 112)),
    "lake": ((126, 172, 204), (44, 104, 150)),
}
_LIGHT: Final[dict[str, tuple[float, float, float]]] = {  # what the ground is multiplied with
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.66, 0.46),
    "night": (0.115, 0.155, 0.29),
}


@lru_cache(maxsize=128)
def backdrop(background: str, light: str, horizon: int, variant: int, size_px: int) -> npt.NDArray[np.float16]:
    """Return the backdrop `(size_px, 1.5 size_px, 3)`, linear light in [0, 1]; do not change it."""
    fold = 2  # painted at twice the size and averaged, so that far texture does not flicker
    high, wide = size_px * fold, round(size_px * SPAN) * fold
    painter = _Painter(background, light, HORIZONS[horizon], variant, (high, wide))
    canvas = painter.paint()
    # Half precision halves the cache: there are 108 backdrops per size.
    blocks = canvas.reshape(high // fold, fold, wide // fold, fold, 3)
    small: npt.NDArray[np.float16] = blocks.mean(axis=(1, 3)).astype(np.float16)
    small.setflags(write=False)
    return small


class _Painter:
    """Holds the pixel grid and the random source while one backdrop is painted."""

    def __init__(self, background: str, light: str, horizon: float, variant: int, shape: tuple[int, int]) -> None:
        self.background, self.light, self.horizon, self.shape = background, light, horizon, shape
        high, wide = shape
        self.rng = np.random.default_rng([variant, len(background), ord(background[0])])
        self.y = ((np.arange(high, dtype=np.float32) + 0.5) / high)[:, None]
        self.x = ((np.arange(wide, dtype=np.float32) + 0.5) / high)[None, :]
        # Position on the ground plane: depth 1 at the picture's lower edge, growing to the horizon.
        depth = (1 - horizon) / np.maximum(self.y - horizon, 0.004)
        self.depth = np.minimum(depth, 60.0)
        self.across = (self.x - SPAN / 2) * self.depth
        self.near = np.clip((self.y - horizon) / (1 - horizon), 0, 1)  # 0 at the horizon

    def paint(self) -> Floats:
        sky = self._wall() if self.background == "floor" else self._sky()
        ground: Floats = getattr(self, f"_{self.background}")()
        if self.background == "lake":
            ground = self._mirror(sky, ground)
        else:
            ground = ground * np.asarray(_LIGHT[self.light], dtype=np.float32)
        if self.background != "floor":
            haze = np.asarray(_linear(_SKY[self.light][1]), dtype=np.float32)
            amount = 0.55 * np.exp(-self.near * 14)[..., None]
            ground = ground * (1 - amount) + haze * amount
        edge = self.shape[0] * (self.y - self.horizon)
        mask = np.clip(edge + 0.5, 0, 1)[..., None]
        picture: Floats = np.clip(sky * (1 - mask) + ground * mask, 0, 1).astype(np.float32)
        return picture

    def _noise(self, cells: int, *, stretch: float = 1.0) -> Floats:
        """Return smooth noise over the canvas, zero mean, about unit variance."""
        wide = max(2, round(cells * SPAN / stretch))
        grid = self.rng.standard_normal((cells, wide)).astype(np.float32)
        image = Image.fromarray(grid).resize(self.shape[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image)

    def _tile(self, cells: int) -> Floats:
        """Return a periodic smooth texture `(256, 256)`, zero mean."""
        grid = np.pad(self.rng.standard_normal((cells, cells)), 2, mode="wrap").astype(np.float32)
        step = 256 // cells
        image = Image.fromarray(grid).resize(((cells + 4) * step,) * 2, Image.Resampling.BICUBIC)
        return np.asarray(image)[2 * step : 2 * step + 256, 2 * step : 2 * step + 256]

    def _laid(self, cells: int, *, along: float = 1.0, across: float = 1.0, repeat: float = 1.5) -> Floats:
        """Return a texture that lies on the ground; it fades where its cells get too small."""
        tile = self._tile(cells)
        u = (self.across * (256 * repeat * across)).astype(np.int64) % 256
        v = np.broadcast_to((self.depth * (256 * repeat * along)).astype(np.int64) % 256, u.shape)
        size = self.shape[0] / (cells * repeat * max(across, along * self.depth.min()))
        fade = np.clip(size / self.depth / 2.5, 0, 1) ** 1.5
        texture: Floats = tile[v, u] * fade
        return texture

    def _base(self) -> Floats:
        far, near = (np.asarray(_linear(c), dtype=np.float32) for c in _GROUND[self.background])
        blend = np.sqrt(self.near)[..., None]
        return np.broadcast_to(far * (1 - blend) + near * blend, (*self.shape, 3)).copy()

    def _sky(self) -> Floats:
        top, low = (np.asarray(_linear(c), dtype=np.float32) for c in _SKY[self.light])
        height = np.clip(self.y / self.horizon, 0, 1)[..., None] ** 1.25
        sky = np.broadcast_to(top * (1 - height) + low * height, (*self.shape, 3)).copy()
        if self.light == "night":
            self._stars(sky)
            self._moon(sky)
        elif self.light == "sunset":
            rose = np.asarray(_linear((238, 116, 108)), dtype=np.float32)
            band = 0.55 * np.exp(-(((self.y / self.horizon - 0.66) / 0.24) ** 2))[..., None]
            sky = sky * (1 - band) + rose * band
            away = (self.x - 0.42) ** 2 + ((self.y - self.horizon + 0.02) * 1.15) ** 2
            glow = np.exp(-away / 0.035)[..., None] * 0.75 + np.exp(-away / 0.0022)[..., None]
            sky = sky + glow * np.asarray((0.95, 0.62, 0.24), dtype=np.float32)
        self._clouds(sky)
        self._hills(sky)
        return sky

    def _stars(self, sky: Floats) -> None:
        pixel = 1.0 / self.shape[0]
        for x, y, power in self.rng.random((46, 3)):
            r = (0.0022 + 0.0028 * power**3) ** 2
            row, column = int(y * self.horizon / pixel), int(x * SPAN / pixel)
            reach = max(2, int(0.012 / pixel))
            rows = slice(max(0, row - reach), row + reach)
            columns = slice(max(0, column - reach), column + reach)
            away = (self.y[rows] - row * pixel) ** 2 + (self.x[:, columns] - column * pixel) ** 2
            sky[rows, columns] += (0.75 * np.exp(-away / r))[..., None]

    def _moon(self, sky: Floats) -> None:
        cx, cy, r = 0.42, self.horizon * 0.36, 0.052
        away = np.sqrt((self.x - cx) ** 2 + (self.y - cy) ** 2)
        bite = np.sqrt((self.x - cx - 0.026) ** 2 + (self.y - cy + 0.014) ** 2)
        pixels = self.shape[0]
        disc = np.clip((r - away) * pixels, 0, 1) * np.clip((bite - r * 0.9) * pixels, 0, 1)
        glow = 0.16 * np.exp(-((away / 0.13) ** 2))
        sky += glow[..., None] * np.asarray((0.6, 0.7, 1.0), dtype=np.float32)
        sky += disc[..., None] * np.asarray((0.95, 0.92, 0.78), dtype=np.float32)

    def _clouds(self, sky: Floats) -> None:
        field = sum(self._noise(c, stretch=2.6) * w for c, w in ((5, 1.0), (10, 0.55), (21, 0.3), (42, 0.16)))
        cover = np.clip((field - 0.55) * 1.1, 0, 1) * np.clip(1.15 - self.y / self.horizon, 0, 0.9)
        if self.light == "night":
            cover = cover * 0.25
        tone = {"day": (255, 255, 255), "sunset": (255, 168, 138), "night": (70, 82, 124)}[self.light]
        amount = cover[..., None]
        sky += amount * (np.asarray(_linear(tone), dtype=np.float32) - sky)

    def _hills(self, sky: Floats) -> None:
        tones = {
            "grass": ((120, 156, 136), (92, 136, 88)),
            "beach": ((128, 160, 190), (72, 140, 186)),
            "snow": ((176, 196, 222), (206, 220, 238)),
            "road": ((138, 152, 168), (112, 138, 104)),
            "lake": ((112, 142, 160), (70, 110, 98)),
        }[self.background]
        light = np.asarray(_LIGHT[self.light], dtype=np.float32)
        haze = np.asarray(_linear(_SKY[self.light][1]), dtype=np.float32)
        for i, tone in enumerate(tones):
            if self.background == "beach":  # the sea instead of hills
                if i == 0:
                    continue
                line = self.horizon - 0.055 + 0 * self.x
            else:
                phase, tall = self.rng.random(5) * 6.3, (0.085, 0.05)[i]
                waves = sum(
                    np.sin(self.x * f + p) * a
                    for f, a, p in zip((3.1, 6.7, 12.1, 25, 47), (1, 0.5, 0.3, 0.09, 0.05), phase, strict=True)
                )
                line = self.horizon - tall * np.clip(0.62 + 0.42 * waves, 0.1, None)
            mask = np.clip((self.y - line) * self.shape[0] + 0.5, 0, 1)[..., None]
            share = (0.42, 0.16)[i] * (0.6 if self.background == "beach" else 1)
            colour = np.asarray(_linear(tone), dtype=np.float32) * light * (1 - share) + haze * share
            if self.background == "beach":
                ripples = 1 + 0.07 * self._noise(140, stretch=14.0)
                deep = 1.15 - 0.45 * np.clip((self.horizon - self.y) / 0.055, 0, 1)[..., None]
                layer = colour * ripples[..., None] * deep
            else:
                layer = colour * np.ones((*self.shape, 1), dtype=np.float32)
            sky += mask * (layer - sky)

    def _wall(self) -> Floats:
        """Return an indoor wall with a window that shows the time of day."""
        tone = {"day": (226, 219, 204), "sunset": (226, 176, 134), "night": (62, 66, 98)}[self.light]
        base = np.asarray(_linear(tone), dtype=np.float32)
        stripes = 1 + 0.035 * np.sign(np.sin(self.x * 78 + 0.4))
        shade = (0.80 + 0.25 * self.y / self.horizon) * stripes
        wall: Floats = base * shade[..., None]
        top, low = (np.asarray(_linear(c), dtype=np.float32) for c in _SKY[self.light])
        pixels = self.shape[0]
        for cx in (0.30, 1.12):
            w, y0, y1, half_bar = 0.15, -0.1, self.horizon * 0.64, 0.007
            dx = np.abs(self.x - cx)
            for grow, frame in ((0.022, True), (0.0, False)):
                mask = (np.clip((w + grow - dx) * pixels, 0, 1) * np.clip((y1 + grow - self.y) * pixels, 0, 1))[
                    ..., None
                ]
                if frame:
                    layer: Floats = np.asarray(_linear((246, 244, 238)), dtype=np.float32) * np.sqrt(
                        np.asarray(_LIGHT[self.light], dtype=np.float32)
                    )
                else:
                    t = np.clip((self.y - y0) / (y1 - y0), 0, 1)[..., None]
                    layer = top * (1 - t) + low * t
                    bar = ((dx < half_bar) | (np.abs(self.y - y1 * 0.45) < half_bar))[..., None]
                    mask = mask * (1 - bar)
                wall = wall + mask * (layer - wall)
        line = np.clip(1 - np.abs(self.y - self.horizon + 0.012) / 0.012, 0, 1)[..., None]
        return wall * (1 - 0.35 * line)

    def _grass(self) -> Floats:
        ground = self._base()
        tufts = 0.5 * self._laid(64, along=0.5) + 0.5 * self._laid(128, along=0.35) + 0.35 * self._laid(16)
        blades = self._noise(150, stretch=0.33) * np.clip(self.near * 1.3, 0, 1)
        tone = 1 + 0.15 * tufts + 0.10 * blades
        ground *= tone[..., None]
        ground[..., 0] *= 1 + 0.10 * self._laid(8)
        return ground

    def _beach(self) -> Floats:
        ground = self._base()
        wave = np.sin(self.depth * 34 + 5.0 * self._laid(8, repeat=1.0) + self.across * 2.5)
        ripple = wave * np.clip(self.near * 1.6 - 0.25, 0, 1) * 0.045
        grain = 0.05 * self._laid(128, repeat=3) + 0.035 * self._laid(16)
        ground *= (1 + ripple + grain)[..., None]
        shore = 0.05 + 0.008 * np.sin(self.x * 15) + 0.005 * np.sin(self.x * 31 + 1)
        wet = np.exp(-np.clip(self.near - shore, 0, 1) * 22)[..., None]
        ground *= 1 - 0.36 * wet
        foam = np.exp(-(((self.near - shore) / 0.012) ** 2))[..., None]
        water = np.clip((shore - self.near) * 90, 0, 1)[..., None]
        ground += water * (np.asarray(_linear((104, 178, 206)), dtype=np.float32) - ground)
        shown: Floats = ground + foam * (0.93 - ground)
        return shown

    def _snow(self) -> Floats:
        ground = self._base()
        drift = 0.55 * self._laid(8, repeat=1.0) + 0.25 * self._laid(16) + 0.12 * self._laid(64)
        cold = np.asarray((0.085, 0.06, 0.03), dtype=np.float32)
        ground = ground * (1 + drift[..., None] * cold)
        sparkle = np.clip(self._laid(128, repeat=3) - 1.9, 0, 1) * 0.5
        shown: Floats = ground * 0.93 + sparkle[..., None]
        return shown

    def _floor(self) -> Floats:
        ground = self._base()
        plank = self.across * 1.9
        number = np.floor(plank).astype(np.int64)
        tones = 1 + 0.13 * self.rng.standard_normal(256)
        grain = self._laid(64, along=0.06, across=1.0, repeat=2) + 0.6 * self._laid(16, along=0.08)
        tone = tones[number % 256] * (1 + 0.085 * grain)
        seam = np.abs(plank - np.round(plank)) / 1.9 / self.depth
        tone = tone * (1 - 0.55 * np.exp(-((seam / 0.0045) ** 2)))
        gleam = 1 + 0.22 * np.exp(-self.near * 5)
        return ground * (tone * gleam)[..., None]

    def _road(self) -> Floats:
        ground = self._base()
        grain = 0.09 * self._laid(128, repeat=3) + 0.05 * self._laid(64, repeat=2) + 0.04 * self._laid(8)
        ground *= (1 + grain)[..., None]
        paint = np.asarray((0.80, 0.80, 0.76), dtype=np.float32)
        soft = 0.5 / self.shape[0] * self.depth
        for centre, half, dashed in ((-1.02, 0.03, False), (1.02, 0.03, False), (0.0, 0.026, True)):
            mask = np.clip((half - np.abs(self.across - centre)) / soft + 0.5, 0, 1)
            if dashed:
                mask = mask * (np.floor(self.depth * 1.45 + 0.25) % 2 == 0)
            ground += (0.85 * mask)[..., None] * (paint - ground)
        verge = np.clip((np.abs(self.across) - 1.16) / soft + 0.5, 0, 1)[..., None]
        green = np.asarray(_linear((112, 142, 74)), dtype=np.float32)
        turf = green * (1 + 0.14 * self._laid(64, along=0.5))[..., None]
        return ground * (1 - verge) + turf * verge

    def _lake(self) -> Floats:
        return self._base() * np.asarray(_LIGHT[self.light], dtype=np.float32)

    def _mirror(self, sky: Floats, ground: Floats) -> Floats:
        """Return rippled water that mirrors `sky`."""
        high, wide = self.shape
        coarse = sky.reshape(high // 16, 16, wide // 16, 16, 3).mean(axis=(1, 3))
        soft = Image.fromarray((np.clip(coarse, 0, 1) * 255).astype(np.uint8)).resize((wide, high))
        above = np.clip((self.horizon - 0.10 - self.y) / 0.03, 0, 1)[..., None]
        # Single stars would be drawn out into lines; near the horizon the hills stay sharp.
        sky = sky + above * (np.asarray(soft, dtype=np.float32) / 255 - sky)
        ripple = np.sin(self.depth * 26 + 4 * self._laid(8, repeat=0.7) + self.across * 1.5)
        ripple = 0.6 * ripple + 0.8 * self._laid(32, across=0.25, along=0.9, repeat=1.2)
        ripple = ripple * np.clip(self.near * 2.0, 0.1, 1)
        source = self.horizon - (self.y - self.horizon) * 0.8 + 0.016 * ripple
        rows = np.clip((source * high).astype(np.int64), 0, high - 1)
        mirrored = np.take_along_axis(sky, np.broadcast_to(rows[..., None], sky.shape), axis=0)
        share = (0.60 - 0.38 * np.sqrt(self.near))[..., None]
        glint = np.clip(ripple, 0, None)[..., None] * 0.07 * np.asarray(_linear(_SKY[self.light][1]), dtype=np.float32)
        return ground * (1 - share) * (1 + 0.16 * ripple[..., None]) + mirrored * share + glint


def _linear(colour: _Colour) -> tuple[float, float, float]:
    red, green, blue = ((c / 255) ** 2 for c in colour)
    return red, green, blue
