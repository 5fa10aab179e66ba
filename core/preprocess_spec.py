"""The preprocessing spec: every choice that decides which pixels a graph sees. Ships in the bundle."""

from typing import Final, Literal

import msgspec

from pocketlens.core.picture_header import PICTURE_FORMATS

__all__ = ["SPEC_VERSION", "PreprocessSpec"]

SPEC_VERSION: Final = 1
"""The version of the rules that `pocketlens.core.preprocess` writes down and carries out."""

_MAX_SIDE_PX: Final = 4096
# Pillow refuses more than this on its own account, whatever a spec says.
_MAX_PIXELS: Final = 178_956_970
_MAX_BYTES: Final = 2**31 - 1
_MAX_ASPECT: Final = 2**20


class PreprocessSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an encoded picture becomes the (height_px, width_px, 3) uint8 RGB input of a graph.

    Raises `ValueError` when built with a value out of range; decoding one from JSON or TOML with
    msgspec turns that into `msgspec.ValidationError`, which the reader of the file makes its own.

    Attributes:
        version: version of the rules; only `SPEC_VERSION` is accepted.
        height_px: rows of the result, 1..4096.
        width_px: columns of the result, 1..4096.
        fit: `crop` resizes until the target is covered and keeps the centre; `squash` ignores the
            aspect ratio; `pad` resizes until the picture fits and centres it on `pad_colour`.
        filter: resampling kernel, antialiased: `bicubic` (a = -0.5) or `bilinear`.
        matte: sRGB colour that shows through transparent pixels.
        pad_colour: sRGB colour around the picture when `fit` is `pad`.
        formats: picture formats that are decoded, a subset of `PICTURE_FORMATS`.
        max_pixels: largest width x height that is decoded.
        max_bytes: largest encoded file that is read.
        max_aspect: largest longer side / shorter side.
        jpeg_scaling: `dct` decodes large JPEG files at 1/2, 1/4 or 1/8 of their size by the rule of
            `pocketlens.core.scaled_decoding`, `none` in full. Since schema 2 of the bundle.
    """

    version: int = SPEC_VERSION
    height_px: int
    width_px: int
    fit: Literal["crop", "squash", "pad"] = "crop"
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    matte: tuple[int, int, int] = (255, 255, 255)
    pad_colour: tuple[int, int, int] = (0, 0, 0)
    formats: tuple[str, ...] = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
    max_pixels: int = 64_000_000
    max_bytes: int = 64 * 2**20
    max_aspect: int = 100
    jpeg_scaling: Literal["none", "dct"] = "none"

    def __post_init__(self) -> None:
        _check_range("version", self.version, SPEC_VERSION, SPEC_VERSION)
        _check_range("height_px", self.height_px, 1, _MAX_SIDE_PX)
        _check_range("width_px", self.width_px, 1, _MAX_SIDE_PX)
        _check_range("max_pixels", self.max_pixels, 1, _MAX_PIXELS)
        _check_range("max_bytes", self.max_bytes, 1, _MAX_BYTES)
        _check_range("max_aspect", self.max_aspect, 1, _MAX_ASPECT)
        _check_choice("fit", self.fit, ("crop", "squash", "pad"))
        _check_choice("filter", self.filter, ("bicubic", "bilinear"))
        _check_choice("jpeg_scaling", self.jpeg_scaling, ("none", "dct"))
        _check_colour("matte", self.matte)
        _check_colour("pad_colour", self.pad_colour)
        if not self.formats:
            raise ValueError("formats: expected at least one picture format, found none")
        for name in self.formats:
            _check_choice("formats", name, PICTURE_FORMATS)


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        wanted = f"{low}" if low == high else f"an integer in {low}..{high}"
        raise ValueError(f"{field}: expected {wanted}, found {value!r}")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}: expected one of {', '.join(choices)}, found {value!r}")


def _check_colour(field: str, value: tuple[int, int, int]) -> None:
    if len(value) != 3:
        raise ValueError(f"{field}: expected three levels (red, green, blue), found {len(value)}")
    for level in value:
        _check_range(field, level, 0, 255)
