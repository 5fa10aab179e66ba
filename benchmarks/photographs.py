"""JPEG files to measure with, made from seeds: rendered scenes, enlarged, with the grain of a sensor.

What a decoder costs depends on the detail in a picture. A plain rendering compresses to almost nothing and would make
decoding look cheaper than it is, so each picture gets a texture by octaves and noise: about 1.8 bits a pixel at
quality 90, as photographs have.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["SIZES", "photograph", "write_photographs"]

SIZES: Final = {"500px": (500, 375), "12mp": (4000, 3000), "thumbnail": (128, 96)}
"""Width and height in pixels by name."""

_BLOCK_PX: Final = 512
_DRAWN_PX: Final = 1000


def photograph(seed: int, width: int, height: int, *, quality: int = 90) -> bytes:
    """Return one JPEG file: shapes and a texture by octaves, then grain."""
    rng = np.random.default_rng(seed)
    # What is coarser than a thousandth of the width is drawn small and enlarged.
    small = min(width, _DRAWN_PX), max(min(width, _DRAWN_PX) * height // width, 1)
    drawn = Image.fromarray(_scene(rng, *small)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (_BLOCK_PX, _BLOCK_PX, 1)).round().astype(np.int16)
    tiles = (-(-height // _BLOCK_PX), -(-width // _BLOCK_PX), 1)
    pixels = np.asarray(drawn) + np.tile(grain, tiles)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _scene(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    pixels = np.full((height, width, 3), 128, np.float32)
    cells, strength = 4, 70.0
    while cells < width // 2:
        coarse = rng.normal(128, strength, (max(cells * height // width, 2), cells, 3))
        level = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        pixels += np.asarray(level.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
        cells, strength = cells * 2, strength * 0.6
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(6):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.25) * width
        inside = ((xx - x) ** 2 + (yy - y) ** 2) < radius**2
        pixels[inside] = pixels[inside] * 0.4 + rng.uniform(0, 255, 3).astype(np.float32) * 0.6
    return pixels.clip(0, 255).astype(np.uint8)


def write_photographs(folder: Path, size: str, count: int, *, distinct: int | None = None) -> list[str]:
    """Return the paths of `count` JPEG files of `size` in `folder`, written where they are absent.

    With `distinct`, only so many pictures are drawn; the others repeat them under other names.
    """
    width, height = SIZES[size]
    target = folder / f"{size}-{count}"
    target.mkdir(parents=True, exist_ok=True)
    drawn: dict[int, bytes] = {}
    paths = []
    for index in range(count):
        path = target / f"{index // 1000:03}" / f"{index:06}.jpg"
        paths.append(str(path))
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        seed = index % (distinct or count)
        if distinct and seed not in drawn:
            drawn[seed] = photograph(seed, width, height)
        path.write_bytes(drawn[seed] if distinct else photograph(seed, width, height))
    return paths
