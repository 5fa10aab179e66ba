"""Encoded golden inputs: PNG and JPEG variants whose decoding goes wrong in ports."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.export.golden_sources import scene_window

__all__ = ["WIDE_GAMUT_PROFILE", "encoded_files"]

_QUALITY: Final = 90
_ORIENTATION_TAG: Final = 0x0112


def encoded_files(raw: Mapping[str, NDArray[Any]], *, seed: int, height_px: int, width_px: int) -> dict[str, bytes]:
    """Return encoded pictures by file name.

    Args:
        raw: what `raw_sources` returns.
        seed: of the scenes.
        height_px: rows of the bundle's target; `jpeg-large.jpg` is more than twice as high.
        width_px: columns of it.
    """
    photo, upright = scene_window(seed + 20, 41, 57), scene_window(seed + 21, 40, 56)
    stored = _jpeg(upright, subsampling=0)
    files = {
        "png-rgb.png": _png(photo),
        "png-grey.png": _png(raw["grey"]),
        "png-grey16.png": _png(raw["grey16"]),
        "png-rgb16.png": _png16(raw["rgb16"]),
        "png-rgba.png": _png(raw["rgba"]),
        "png-palette-alpha.png": _palette(raw["rgba"]),
        "png-profile.png": _png(raw["plain"], icc_profile=WIDE_GAMUT_PROFILE),
        "jpeg-444.jpg": _jpeg(photo, subsampling=0),
        "jpeg-420.jpg": _jpeg(photo, subsampling=2),
        "jpeg-grey.jpg": _jpeg(raw["plain"].mean(axis=2).astype(np.uint8)),
        "jpeg-cmyk.jpg": _jpeg(_cmyk(photo)),
        "jpeg-large.jpg": _large(seed + 22, height_px, width_px),
    }
    # The same compressed picture each time; only the tag differs.
    files |= {f"jpeg-orientation-{value}.jpg": _tagged(stored, value) for value in range(2, 9)}
    return files


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(pixels: NDArray[Any], **options: Any) -> bytes:
    return _encoded(Image.fromarray(pixels), "PNG", optimize=True, **options)


def _jpeg(pixels: NDArray[Any] | Image.Image, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return _encoded(image, "JPEG", quality=_QUALITY, optimize=True, **options)


def _palette(rgba: NDArray[np.uint8]) -> bytes:
    """Return a palette PNG whose entries have an alpha of their own (tRNS)."""
    image = Image.fromarray(rgba).quantize(64, method=Image.Quantize.FASTOCTREE)
    return _encoded(image, "PNG", optimize=True)


def _png16(pixels: NDArray[np.uint16]) -> bytes:
    """Return a 16-bit RGB PNG (W3C PNG, 3rd edition, section 5), which Pillow reads but does not write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _cmyk(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return `pixels` as CMYK with the black that they share taken out of the inks."""
    inks = 255 - pixels.astype(np.int32)
    black = inks.min(axis=2) // 2
    cmyk = np.dstack([inks - black[..., None], black]).astype(np.uint8)
    return Image.frombytes("CMYK", (cmyk.shape[1], cmyk.shape[0]), cmyk.tobytes())  # four bands alone would mean RGBA


def _tagged(jpeg: bytes, orientation: int) -> bytes:
    """Return `jpeg` with an Exif segment (Exif 2.32, 4.5.4) right after its start marker."""
    entry = struct.pack(">HHIHH", _ORIENTATION_TAG, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + b"\0" * 4
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def _large(seed: int, height_px: int, width_px: int) -> bytes:
    """Return a JPEG that a decoder with scaled decoding (DCT scaling by 1/2) takes a shortcut for."""
    rows, columns = 2 * height_px + 18, 2 * width_px + 34
    side = -(-max(rows, columns) // 32) * 32
    picture = scene_window(seed, rows, columns, size_px=side)
    return _encoded(Image.fromarray(picture), "JPEG", quality=40, subsampling=0, optimize=True)


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def _profile() -> bytes:
    """Return an ICC v2 matrix profile (ICC.1:2001-04, section 6): Display P3's colorants, gamma 1.8."""
    # Colorants of SMPTE EG 432-1 with D65, adapted to D50 (Bradford).
    colorants = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
    tags = {b"wtpt": _xyz(0.9642, 1.0, 0.8249)}
    for name, colorant in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags[name + b"XYZ"] = _xyz(*colorant)
        tags[name + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256)) + b"\0\0"
    start = 128 + 4 + 12 * len(tags)
    table, body = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    white = struct.pack(">iii", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02200000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white + b"\0" * 48
    return header + struct.pack(">I", len(tags)) + table + body


WIDE_GAMUT_PROFILE: Final = _profile()
"""A profile that is plainly not sRGB: ignoring it moves colours by tens of levels."""
