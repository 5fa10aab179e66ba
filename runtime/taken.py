"""When a picture was taken, from its EXIF block."""

import io
import struct
import warnings
from datetime import UTC, datetime
from typing import Final

from PIL import Image

__all__ = ["taken_at"]

# EXIF 2.32, tables 4 and 8.
_EXIF_IFD: Final = 0x8769
_DATE_TIME_ORIGINAL: Final = 0x9003
_OFFSET_TIME_ORIGINAL: Final = 0x9011
_FORMATS: Final = ("JPEG", "MPO", "PNG", "TIFF", "WEBP")


def taken_at(data: bytes) -> int | None:
    """Return the time that the file `data` says it was taken, seconds since 1970; `None` when it does not say.

    The camera's clock counts as UTC where the file names no time zone. Nothing is decoded: only the headers of
    JPEG, MPO, PNG, TIFF and WebP files are read. A broken block counts as none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                block = image.getexif().get_ifd(_EXIF_IFD)
        moment = str(block[_DATE_TIME_ORIGINAL]).strip("\0 ")
        offset = str(block.get(_OFFSET_TIME_ORIGINAL, "")).strip("\0 ") or "+00:00"
        return int(datetime.strptime(moment + offset, "%Y:%m:%d %H:%M:%S%z").astimezone(UTC).timestamp())
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        SyntaxError,
        OverflowError,
        struct.error,
        Image.DecompressionBombError,
    ):
        return None
