"""The gate before the decoder: what the header of an encoded picture must say before a pixel is touched.

See `pocketlens.core.decode` for the whole order. Here: the format, the codec, the stated size, the stated
frames, and the limits that keep a decoder from working for a long time on few bytes.
"""

import io
import struct
import zlib
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from PIL import Image, ImageCms, UnidentifiedImageError, features

from pocketlens.core.errors import PictureError
from pocketlens.core.picture_frames import MAX_FRAMES, stated_frames
from pocketlens.core.picture_header import describe, jpeg_scans, sniff, stated_size
from pocketlens.core.picture_parts import too_many_parts
from pocketlens.core.preprocess_spec import PreprocessSpec

__all__ = ["BROKEN", "check_size", "open_picture", "refusal"]

BROKEN: Final = (
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
    BufferError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
    Image.DecompressionBombError,
    MemoryError,
)
"""What Pillow and its codecs raise on broken data, collected from hostile files. `refusal` explains it."""

_SNIFF_BYTES: Final = 256
# A baseline JPEG has at most 4 scans and usual progressive ones have 10; an MPO has two or three
# pictures of that. Each scan passes over every coefficient, however few bytes it has.
_MAX_JPEG_SCANS: Final = 100

_CODECS: Final = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}


def open_picture(data: bytes, name: str, spec: PreprocessSpec) -> Image.Image:
    """Return the picture in the file `data`, header read and checked, not one pixel decoded.

    Args:
        data: the encoded file.
        name: what to call it in a message.
        spec: formats and limits.

    Raises:
        PictureError: of kind `unknown_type`, `type_not_allowed`, `bad_shape`, `too_many_pixels` or `corrupt`.
    """
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
    _check_work(data, header, name)
    if size := stated_size(data):
        check_size(*size, name, spec)
    image: Image.Image
    try:
        if header == "HEIF":
            image = _heif_plugin().HeifImageFile(io.BytesIO(data))
        else:
            image = Image.open(io.BytesIO(data), formats=(header,))
    except BROKEN as error:
        raise refusal(error, f"a {header} file", name, spec) from error
    _check_format({image.format or header}, name, spec)
    check_size(*image.size, name, spec)
    return image


@cache
def _heif_plugin() -> Any:
    # Used directly: registering an opener would change Pillow for the surrounding program.
    return import_module("pillow_heif.as_plugin")


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
    if header == "HEIF":
        if not _has_heif():
            raise PictureError(
                name,
                kind="type_not_allowed",
                expected="a format that is decoded without an extra, or the extra [heic]",
                found="a HEIF (HEIC) file, and no package pillow-heif",
                remedy="Install it with: pip install 'pocketlens[heic]'. Or convert the file to JPEG or PNG.",
            )
        return
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


@cache
def _has_heif() -> bool:
    return find_spec("pillow_heif") is not None and find_spec("_pillow_heif") is not None


def _check_work(data: bytes, header: str, name: str) -> None:
    """Refuse what makes a decoder pass over the picture, or the file, very often."""
    if parts := too_many_parts(data, header):
        raise _corrupt(name, f"a {header} file with far too many {parts}: a bomb in time")
    if header == "JPEG" and (scans := jpeg_scans(data)) > _MAX_JPEG_SCANS:
        raise _corrupt(name, f"a JPEG file of {scans:,} scans: a bomb in time")
    if stated_frames(data, header) > MAX_FRAMES:
        raise PictureError(
            name,
            kind="too_many_pixels",
            expected=f"at most {MAX_FRAMES:,} frames or pages",
            found=f"a {header} file that states more",
            remedy="Extract the frame that is meant and save it as a picture of its own.",
        )


def check_size(width: int, height: int, name: str, spec: PreprocessSpec) -> None:
    """Raise `PictureError` of kind `bad_shape` or `too_many_pixels` unless the size is within the spec's limits."""
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


def refusal(error: BaseException, subject: str, name: str, spec: PreprocessSpec) -> PictureError:
    """Return the refusal that stands for `error`, one of `BROKEN`, raised while `subject` was read."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_many(name, f"{subject} whose frames are larger than Pillow decodes", spec)
    if isinstance(error, MemoryError):
        return PictureError(
            name,
            kind="too_many_pixels",
            expected="a picture that is decoded within the memory there is",
            found=f"{subject} that needs more",
            remedy="Scale the picture down, or save it as a baseline JPEG, which needs the least.",
        )
    if isinstance(error, UnidentifiedImageError):
        return _corrupt(name, f"{subject} that breaks off early or is of a variant that Pillow does not read")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return _corrupt(name, f"{subject} that cannot be decoded ({reason})")
