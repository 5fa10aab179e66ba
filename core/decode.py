"""Encoded pictures to upright sRGB pixels, behind a gate that refuses before it decodes.

The gate, in this order, each with its kind of `PictureError`:

1. the source can be read: `missing`, `not_a_file`, `unreadable`, `empty`, `too_large`
2. its header belongs to a picture format: `unknown_type`; one that the spec lists and this
   machine can decode: `type_not_allowed`
3. its stated size: `bad_shape` for no area or too long a strip, `too_many_pixels` for a bomb
4. only then the pixels are decoded: `corrupt`, or `too_many_pixels` when memory runs out

No setting of the surrounding program weakens it: Pillow's `LOAD_TRUNCATED_IMAGES` counts as off,
and Pillow's warnings are not shown, for what they warn of is either refused or harmless.
"""

import io
import os
import struct
import threading
import warnings
import zlib
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features

from pocketlens.core.colour import to_srgb
from pocketlens.core.errors import PictureError
from pocketlens.core.picture_header import describe, jpeg_scans, sniff, stated_size
from pocketlens.core.picture_source import name_of, read_bytes
from pocketlens.core.preprocess_spec import PreprocessSpec

__all__ = ["Picture", "check_pixels", "decode", "decode_image"]

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""A picture: a path, an encoded file as bytes or as a binary file object, or decoded pixels.

Paths and encoded files pass the whole gate. A `PIL.Image.Image` is taken at the frame it stands
on, its EXIF orientation and ICC profile still apply, and only its size is checked. An array is
uint8 (H, W, 3), taken as upright sRGB.
"""

_SNIFF_BYTES: Final = 256
# A baseline JPEG has at most 4 scans and usual progressive ones have 10; an MPO has two or three
# pictures of that. Each scan passes over every coefficient, however few bytes it has.
_MAX_JPEG_SCANS: Final = 100

# What Pillow and its codecs raise on broken data, collected from hostile files.
_BROKEN: Final = (
    OSError,  # with UnidentifiedImageError
    EOFError,
    SyntaxError,  # "not a ... file" and unknown pixel modes
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,  # with NotImplementedError and RecursionError
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)

_ORIENTATION_TAG: Final = 0x0112
# EXIF 2.32, table 6: what turns the stored picture upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CODECS: Final = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}


class _StrictPillow:
    """While any thread is inside: Pillow does not warn, and truncated files are errors.

    Both settings belong to the process, so the first thread in makes them and the last one out
    restores them; a plain `catch_warnings` in each thread would restore in the wrong order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._tolerant = False

    def __enter__(self) -> Self:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._tolerant
                self._warnings.__exit__(None, None, None)


_STRICT_PILLOW: Final = _StrictPillow()


def decode(source: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return the picture upright, in sRGB, opaque: uint8 (H, W, 3), C-contiguous.

    Upright: the EXIF orientation (1..8; where there is none, the one in XMP) is applied; a broken
    EXIF block or another number counts as 1. First frame of animations, first picture of
    MPO and multi-page TIFF files. Colours: see `pocketlens.core.colour`.

    Args:
        source: see `Picture`. An array is returned as it is when it is contiguous.
        spec: gives the formats and limits of the gate, and the matte under transparency.

    Raises:
        PictureError: the picture was refused; see the module's docstring for the kinds.
    """
    if isinstance(source, np.ndarray):
        check_pixels(source)
        _check_size(source.shape[1], source.shape[0], "the given array", spec)
        return np.ascontiguousarray(source)
    return np.array(decode_image(source, spec))


def decode_image(source: Picture, spec: PreprocessSpec) -> Image.Image:
    """Return what `decode` returns as a PIL image of mode RGB: two copies fewer on the way to resize."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(decode(source, spec))
    name = name_of(source)
    with _STRICT_PILLOW:
        if isinstance(source, Image.Image):
            _check_size(*source.size, name, spec)
            return _decode_pixels(source, b"", name, spec)
        data = read_bytes(source, max_bytes=spec.max_bytes)
        with _open(data, name, spec) as image:
            return _decode_pixels(image, data, name, spec)


def check_pixels(pixels: NDArray[Any]) -> None:
    """Raise `PictureError` unless `pixels` is uint8 (H, W, 3) with H, W >= 1."""
    if pixels.dtype != np.uint8:
        raise PictureError(
            "the given array",
            kind="unknown_type",
            expected="dtype uint8, RGB levels 0..255",
            found=f"dtype {pixels.dtype}",
            remedy="Scale to 0..255 and convert with .astype(numpy.uint8).",
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise PictureError(
            "the given array",
            kind="bad_shape",
            expected="shape (H, W, 3) with H and W at least 1",
            found=f"shape {pixels.shape}",
            remedy="Move the channels last, and turn grey pictures into three equal channels.",
        )


def _open(data: bytes, name: str, spec: PreprocessSpec) -> Image.Image:
    """Return the picture, header read and checked, not one pixel decoded."""
    head = data[:_SNIFF_BYTES]
    header = sniff(head)
    if header is None:
        raise PictureError(
            name,
            kind="unknown_type",
            expected=f"a picture ({', '.join(spec.formats)})",
            found=describe(data),
            remedy="Pass the picture itself; the ending of a file's name does not count.",
        )
    _check_format({"JPEG", "MPO"} if header == "JPEG" else {header}, name, spec)
    _check_codec(header, name)
    if header == "JPEG" and jpeg_scans(data) > _MAX_JPEG_SCANS:
        raise _corrupt(name, f"a JPEG file of {jpeg_scans(data):,} scans: a bomb in time")
    try:
        image = Image.open(io.BytesIO(data), formats=(header,))
    except (Image.DecompressionBombError, MemoryError, *_BROKEN) as error:
        size = stated_size(data)
        if size is not None:
            # Pillow reports a side of zero as if the file were no picture.
            _check_size(*size, name, spec)
        raise _broken(error, f"a {header} file", name, spec) from error
    _check_format({image.format or header}, name, spec)
    _check_size(*image.size, name, spec)
    return image


def _check_format(names: set[str], name: str, spec: PreprocessSpec) -> None:
    if names.isdisjoint(spec.formats):
        raise PictureError(
            name,
            kind="type_not_allowed",
            expected=f"one of {', '.join(spec.formats)}",
            found=f"a {min(names)} file",
            remedy="Convert it to JPEG or PNG.",
        )


def _check_codec(header: str, name: str) -> None:
    if header not in Image.OPEN:
        Image.init()
    if header not in Image.OPEN or (header in _CODECS and not features.check(_CODECS[header])):
        raise PictureError(
            name,
            kind="type_not_allowed",
            expected="a format that the installed Pillow decodes",
            found=f"a {header} file and no decoder for it",
            remedy="Convert the file to JPEG or PNG.",
        )


def _check_size(width: int, height: int, name: str, spec: PreprocessSpec) -> None:
    if width < 1 or height < 1:
        raise _bad_shape(name, width, height, "at least one pixel each way")
    if width * height > spec.max_pixels:
        raise _too_many(name, f"{width} x {height} = {width * height:,} pixels", spec)
    if max(width, height) > spec.max_aspect * min(width, height):
        raise _bad_shape(name, width, height, f"sides of a ratio up to {spec.max_aspect}:1")


def _bad_shape(name: str, width: int, height: int, expected: str) -> PictureError:
    return PictureError(
        name,
        kind="bad_shape",
        expected=expected,
        found=f"{width} x {height} pixels",
        remedy="Crop or replace the picture.",
    )


def _too_many(name: str, found: str, spec: PreprocessSpec) -> PictureError:
    return PictureError(
        name,
        kind="too_many_pixels",
        expected=f"at most {spec.max_pixels:,} pixels",
        found=found,
        remedy="Scale the picture down, or raise max_pixels in the preprocessing spec.",
    )


def _corrupt(name: str, found: str) -> PictureError:
    return PictureError(
        name,
        kind="corrupt",
        expected="a complete, well-formed picture",
        found=found,
        remedy="Copy or download it again, or open it in an editor and save it anew.",
    )


def _broken(error: BaseException, subject: str, name: str, spec: PreprocessSpec) -> PictureError:
    """Return the refusal that stands for what Pillow raised while it read `subject`."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_many(name, f"{subject} whose frames are larger than Pillow decodes", spec)
    if isinstance(error, MemoryError):
        return _too_many(name, f"{subject} that needs more memory than there is", spec)
    if isinstance(error, UnidentifiedImageError):
        return _corrupt(name, f"{subject} that breaks off early or is of a variant that Pillow does not read")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return _corrupt(name, f"{subject} that cannot be decoded ({reason})")


def _decode_pixels(image: Image.Image, data: bytes, name: str, spec: PreprocessSpec) -> Image.Image:
    try:
        sample_bits = _sample_bits(image, data)
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        return to_srgb(upright, spec.matte, sample_bits=sample_bits)
    except (Image.DecompressionBombError, MemoryError, *_BROKEN) as error:
        raise _broken(error, f"{image.format or 'PIL'} pixels", name, spec) from error


def _sample_bits(image: Image.Image, data: bytes) -> int | None:
    """Return the bits of one stored sample where the header says so, else `None`."""
    if image.format == "PNG" and data:
        return data[24]  # IHDR is first: 8 bytes of signature, 8 of chunk header, two sizes
    bits = getattr(image, "tag_v2", {}).get(258)  # TIFF 6.0, BitsPerSample
    return bits[0] if isinstance(bits, tuple) and bits and isinstance(bits[0], int) else None


def _orientation(image: Image.Image) -> int:
    # After load(): TIFF files are turned by Pillow there, and lose the tag.
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) else 1
