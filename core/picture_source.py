"""Where the bytes of a picture come from: a path, a binary file object, or bytes at hand."""

import errno
import os
import stat
import zlib
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image

from pocketlens.core.errors import PictureError

__all__ = ["name_of", "read_bytes"]

_DEFAULT_MAX_BYTES: Final = 64 * 2**20


def read_bytes(source: str | os.PathLike[str] | bytes | BinaryIO, *, max_bytes: int = _DEFAULT_MAX_BYTES) -> bytes:
    """Return the encoded file that `source` names or holds.

    Args:
        source: a path, the bytes themselves, or a binary file object (read from where it stands).
        max_bytes: no more than this is ever read into memory.

    Raises:
        PictureError: of kind `missing`, `not_a_file`, `unreadable`, `empty`, `too_large`, or
            `unknown_type` for a source of another type.
    """
    name = name_of(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = memoryview(source).nbytes
        data = bytes(source) if size <= max_bytes else None
    elif isinstance(source, (str, os.PathLike)):
        data, size = _read_file(os.fspath(source), name, max_bytes)
    elif hasattr(source, "read"):
        data, size = _read_stream(source, name, max_bytes)
    else:
        raise PictureError(
            name,
            kind="unknown_type",
            expected="a path, bytes, a binary file, a PIL image or a uint8 array (H, W, 3)",
            found=f"an object of type {type(source).__name__}",
            remedy="Pass one of those.",
        )
    if data is None:
        raise PictureError(
            name,
            kind="too_large",
            expected=f"a file of at most {max_bytes:,} bytes",
            found=f"{size:,} bytes or more",
            remedy="Save the picture smaller, or raise max_bytes in the preprocessing spec.",
        )
    if not data:
        raise PictureError(
            name,
            kind="empty",
            expected="an encoded picture",
            found="zero bytes",
            remedy="Copy or download the file again.",
        )
    return data


def name_of(source: object) -> str:
    """Return what to call `source` in a message: the path, made printable, or a few words."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return name if name.isprintable() else ascii(name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the given bytes"
    if isinstance(source, Image.Image):
        return "the given PIL image"
    if isinstance(source, np.ndarray):
        return "the given array"
    return "the given file object" if hasattr(source, "read") else "the given picture"


def _read_file(path: str | bytes, name: str, max_bytes: int) -> tuple[bytes | None, int]:
    """Return (data, size); data is `None` when the file is larger than `max_bytes`."""
    try:
        # Before opening: a pipe would block, a device may act.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(
                name,
                kind="not_a_file",
                expected="a picture file",
                found="a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket",
                remedy="Name the files themselves.",
            )
        if status.st_size > max_bytes:
            return None, status.st_size
        with open(path, "rb") as file:
            # As many as there are: Python sets aside what it is asked for, and `max_bytes` of memory cost 0.1 ms.
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:  # it has grown meanwhile
                data += file.read(max_bytes + 1 - len(data))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        # ValueError: a NUL, or letters that the file system's encoding lacks; no file has such a name.
        raise _missing(name) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _missing(name) from error
        raise _unreadable(name, error.strerror or type(error).__name__) from error
    return (data if len(data) <= max_bytes else None), len(data)


def _read_stream(stream: Any, name: str, max_bytes: int) -> tuple[bytes | None, int]:
    try:
        data = stream.read(max_bytes + 1)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise _unreadable(name, str(error) or type(error).__name__) from error
    if not isinstance(data, (bytes, bytearray)):
        raise _unreadable(name, f"read() that returns {type(data).__name__}, not bytes")
    return (bytes(data) if len(data) <= max_bytes else None), len(data)


def _missing(name: str) -> PictureError:
    return PictureError(
        name,
        kind="missing",
        expected="a picture file at this path",
        found="no such file",
        remedy="Check the path.",
    )


def _unreadable(name: str, found: str) -> PictureError:
    return PictureError(
        name,
        kind="unreadable",
        expected="a file that can be read in binary mode",
        found=found,
        remedy="Check the permissions and the disk, and open file objects with mode 'rb'.",
    )
