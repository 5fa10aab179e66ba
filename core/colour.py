"""Pixels of any Pillow mode to opaque sRGB, 8 bits a channel.

The rules of spec version 1:

- 16-bit samples keep their high byte (`v >> 8`), in grey as in colour; 9- to 15-bit samples keep
  their highest 8 bits. Signed, 32-bit and floating-point samples that lie in 0..65535 (integers)
  or 0..1 (floats) are read against that range; others state no white, so their least finite value
  becomes 0 and their greatest 255. NaN becomes 0.
- An embedded ICC profile is honoured: relative colorimetric to sRGB with black point
  compensation. A profile that is broken, or made for another kind of pixel (an RGB profile in a
  grey picture), is ignored: a photograph with a bad profile is still a photograph. One that
  moves no colour by more than one level *is* sRGB, and the pixels stay untouched.
- CMYK without a usable profile is multiplied out: (255 - c) * (255 - k) / 255.
- Transparent pixels show the matte: round((alpha * colour + (255 - alpha) * matte) / 255),
  after the profile, since the matte is an sRGB colour. Premultiplied samples are divided first.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

__all__ = ["to_srgb"]

_SPACES: Final = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
_BAND_PIXELS: Final = 2**20


def to_srgb(image: Image.Image, matte: tuple[int, int, int], *, sample_bits: int | None = None) -> Image.Image:
    """Return `image` as mode RGB: sRGB, opaque, 8 bits; itself where it is that already.

    Works in bands of rows: beside the picture and the result, next to no memory is needed.

    Args:
        image: a loaded image of any mode that Pillow has.
        matte: sRGB colour under transparent pixels.
        sample_bits: bits of one stored sample where the file says so (a TIFF of 12 bits, a PNG
            of 2); `None` for what the mode holds.

    Raises:
        ValueError, OSError, MemoryError: what Pillow raises when the pixels make no sense.
    """
    converter = _Converter(image, matte, sample_bits)
    if image.mode == "RGB" and converter.transform("RGB") is None and not _has_colour_key(image):
        return image
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        return converter.convert(image)
    result = Image.new("RGB", image.size, None)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(converter.convert(band), (0, top))
    return result


class _Converter:
    """What is the same for every band of one picture: the range of its levels, and its profile's transform."""

    def __init__(self, image: Image.Image, matte: tuple[int, int, int], sample_bits: int | None) -> None:
        self._matte = matte
        self._sample_bits = sample_bits
        self._range = _level_range(image) if image.mode in ("I", "F") else (0.0, 0.0)
        self._icc = image.info.get("icc_profile")
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}

    def convert(self, band: Image.Image) -> Image.Image:
        """Return rows of the picture as mode RGB."""
        colour, alpha = self._split(band)
        srgb = self._to_srgb_space(colour)
        if alpha is None or alpha.getextrema() == (255, 255):
            return srgb
        shown = Image.new("RGB", srgb.size, self._matte)
        shown.paste(srgb, None, alpha)  # Image.composite, less a copy
        return shown

    def _split(self, band: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """Return the colours, in mode L, RGB, CMYK or LAB, and the alpha channel where there is one."""
        mode = band.mode
        if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode == "P" and _has_alpha(band)):
            straight = band.convert("LA" if mode in ("LA", "La") else "RGBA")
            opaque = straight.getchannel("L") if straight.mode == "LA" else straight.convert("RGB")
            return opaque, straight.getchannel("A")
        if mode in ("I", "F") or mode.startswith("I;16"):
            return _reduce(band, self._sample_bits, self._range)
        alpha = _key_alpha(band, self._sample_bits)
        if mode == "1":
            return band.convert("L"), alpha
        return (band if mode in ("L", "RGB", "CMYK", "LAB") else band.convert("RGB")), alpha

    def transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        """Return the transform of the picture's profile for pixels of `mode`, `None` where there is nothing to do."""
        if mode not in self._transforms:
            self._transforms[mode] = _profile_transform(self._icc, mode)
        return self._transforms[mode]

    def _to_srgb_space(self, colour: Image.Image) -> Image.Image:
        transform = self.transform(colour.mode)
        if transform is None:
            return colour.convert("RGB")
        if colour.mode == "LAB":
            return _apply(colour, transform)
        try:
            return _apply(colour, transform)
        except (ValueError, OSError):
            return colour.convert("RGB")


def _has_colour_key(image: Image.Image) -> bool:
    key = image.info.get("transparency")
    return isinstance(key, tuple) and len(key) == 3


def _has_alpha(image: Image.Image) -> bool:
    palette = image.palette
    return "transparency" in image.info or (palette is not None and palette.mode == "RGBA")


def _key_alpha(image: Image.Image, sample_bits: int | None) -> Image.Image | None:
    """Return the alpha channel of a picture in which one colour is declared transparent."""
    key = image.info.get("transparency")
    if image.mode in ("1", "L") and isinstance(key, int):
        # PNG states the key in the file's own bits, and Pillow has spread the pixels to 0..255.
        level = key * 255 // (2**sample_bits - 1) if sample_bits in (2, 4) else key
        table = [255] * 256
        if 0 <= level <= 255:
            table[level] = 0
        return image.convert("L").point(table)
    if image.mode == "RGB" and isinstance(key, tuple) and _has_colour_key(image):
        # Of 16-bit colours only the high byte is left to compare.
        shift = 8 if sample_bits == 16 else 0
        wanted = np.array([int(level) >> shift for level in key])
        colours = np.asarray(image)
        return Image.fromarray(_by_rows(colours, lambda rows: np.where((rows == wanted).all(2), 0, 255)))
    return None


def _reduce(
    image: Image.Image, sample_bits: int | None, level_range: tuple[float, float]
) -> tuple[Image.Image, Image.Image | None]:
    """Return mode L, and the alpha channel of a colour key, from integer or float samples."""
    values = np.asarray(image)
    key = image.info.get("transparency")
    alpha = None
    if isinstance(key, int):
        alpha = Image.fromarray(_by_rows(values, lambda rows: np.where(rows == key, 0, 255)))
    if values.dtype.kind == "u":
        shift = sample_bits - 8 if sample_bits is not None and 8 < sample_bits < 16 else 8
        return Image.fromarray(_by_rows(values, lambda rows: np.minimum(rows >> shift, 255))), alpha
    return Image.fromarray(_stretch(values, *level_range)), alpha


def _stretch(values: NDArray[Any], least: float, greatest: float) -> NDArray[np.uint8]:
    is_float = values.dtype.kind == "f"
    white = 1.0 if is_float else 65535.0
    if least >= 0.0 and greatest <= white:
        if not is_float:
            return _by_rows(values, lambda rows: rows >> 8)
        least, greatest = 0.0, white
    # Half of each, so that the difference of two extreme floats stays finite.
    span = greatest / 2 - least / 2 or 1.0

    def scale(rows: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            exact = np.nan_to_num(rows.astype(np.float64), nan=least, posinf=greatest, neginf=least)
        return np.floor((exact / 2 - least / 2) / span * 255.0 + 0.5)

    return _by_rows(values, scale)


def _level_range(image: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest finite level of the whole picture; (0, 0) where there is none."""
    least, greatest = np.inf, -np.inf
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        finite = np.isfinite(values)
        if finite.any():
            least = min(least, float(values[finite].min()))
            greatest = max(greatest, float(values[finite].max()))
    return (least, greatest) if least <= greatest else (0.0, 0.0)


def _by_rows(values: NDArray[Any], compute: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    """Return uint8 (H, W): `compute` over bands of rows, so that wide types stay small."""
    height, width = values.shape[:2]
    result = np.empty((height, width), np.uint8)
    band = max(1, _BAND_PIXELS // width)
    for at in range(0, height, band):
        result[at : at + band] = compute(values[at : at + band])
    return result


def _profile_transform(icc: object, mode: str) -> ImageCms.ImageCmsTransform | None:
    if mode == "LAB":
        return _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")
    transform = _usable_transform(icc, mode) if isinstance(icc, bytes) and icc else None
    return None if transform is None or _is_identity(transform, mode) else transform


def _usable_transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return None
        return _transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        profile,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    if result is None:
        raise ValueError("the colour transform gave no picture")
    return result


@cache
def _probe(mode: str) -> Image.Image:
    """Return colours that cover the cube: 9 levels a channel, or every level of grey."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(27, 27, 3))


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    probe = _probe(mode)
    try:
        moved = np.asarray(_apply(probe, transform)).astype(np.int16)
    except (ValueError, OSError):
        return False
    return bool(np.abs(moved - np.asarray(probe.convert("RGB"))).max() <= 1)
