"""Pictures as phones really take them: blurred, noisy, over-compressed, dark, rotated. Seeded, in three severities.

After the protocol of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness", ICLR 2019. The amounts are our
own, relative to the short side, so that they mean the same at every resolution.
"""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from pocketlens.core.decode import decode_image
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.distill.data.sample import PictureFile, as_source

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "write_corrupted"]

SEVERITIES: Final = (1, 2, 3)

_SIDE_PX: Final = 512  # a phone's picture is brought to this first: the subjects look at less
_BLUR: Final = (0.006, 0.012, 0.025)  # radius / short side
_NOISE: Final = (12.0, 25.0, 50.0)  # standard deviation in grey levels
_QUALITY: Final = (30, 15, 6)  # JPEG
_LIGHT: Final = (0.5, 0.25, 0.12)  # what is left of the light, before the sensor's noise
_TURN: Final = (8.0, 20.0, 45.0)  # degrees


def _blur(picture: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(_BLUR[level] * min(picture.size)))


def _noise(picture: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float64)
    return _image(pixels + rng.normal(0.0, _NOISE[level], pixels.shape))


def _jpeg(picture: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=_QUALITY[level])
    return Image.open(encoded).convert("RGB")


def _dark(picture: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    light = np.asarray(picture, dtype=np.float64) * _LIGHT[level]
    return _image(light + rng.normal(0.0, 3.0, light.shape))  # what a sensor adds whatever the light


def _rotated(picture: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    degrees = _TURN[level] * (1 if rng.random() < 0.5 else -1)
    mean = tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(axis=0))
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=mean)


def _image(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


CORRUPTIONS: Final[dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "dark": _dark,
    "rotated": _rotated,
}
"""By name; each takes an RGB picture, an index into the severities and the random numbers of this picture."""


def corrupt(picture: Image.Image, kind: str, severity: int, *, key: str, seed: int) -> Image.Image:
    """Return `picture` (RGB) made worse.

    Args:
        picture: left as it is.
        kind: one of `CORRUPTIONS`.
        severity: one of `SEVERITIES`.
        key: the picture's id: with `seed` and `kind` it decides the random numbers, whatever the order.
        seed: of the evaluation.
    """
    number = hashlib.sha256(f"{seed}\0{kind}\0{severity}\0{key}".encode()).digest()[:8]
    return CORRUPTIONS[kind](picture, severity - 1, np.random.default_rng(int.from_bytes(number, "big")))


def write_corrupted(source: PictureFile, target: Path, kind: str, severity: int, *, key: str, seed: int) -> None:
    """Write the picture at `source` to `target` as PNG, at most 512 px on its long side, made worse.

    Arguments as in `corrupt`.

    Raises:
        PictureError: the picture cannot be read.
        OSError: `target` cannot be written.
    """
    picture = decode_image(as_source(source), PreprocessSpec(height_px=_SIDE_PX, width_px=_SIDE_PX))
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    corrupt(picture, kind, severity, key=key, seed=seed).save(target, "PNG", compress_level=1)
