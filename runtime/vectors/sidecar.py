"""The file beside a file of vectors: which row belongs to which picture, and what was refused. One JSON line each.

The first line is the header. Each line behind it is one picture, in the order of the source, with either
`row`, the row of its vector from 0, or `refused`, one of `pocketlens.core.errors.PICTURE_KINDS`.
Lines are only appended. A line without an end is one that a kill cut off; it counts as not written.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from pocketlens.core.errors import DataError, storage_errors

__all__ = ["Entry", "Header", "Sidecar", "read_entries"]

_FORMAT: Final = 1
_CHUNK: Final = 2**20


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all vectors of the file have in common.

    Attributes:
        format: version of this file's form, 1.
        model_version: vectors of another one must not be compared with these.
        dim: D.
        precision: of the image encoder.
        max_pixels: pictures with more were refused; `None` for what the bundle says.
    """

    format: int = _FORMAT
    model_version: str
    dim: int
    precision: str
    max_pixels: int | None = None


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One picture.

    Attributes:
        file: its name in the source.
        size_bytes: of the picture, as listed.
        mtime_ns: of the file that holds it.
        row: of its vector.
        sha256: of its bytes, hexadecimal.
        refused: why there is no vector.
        message: the same in a sentence.
    """

    file: str
    size_bytes: int
    mtime_ns: int
    row: int | None = None
    sha256: str | None = None
    refused: str | None = None
    message: str | None = None


_DECODE_HEADER: Final = msgspec.json.Decoder(Header).decode
_DECODE_ENTRY: Final = msgspec.json.Decoder(Entry).decode
_ENCODE: Final = msgspec.json.Encoder().encode


class Sidecar:
    """Appends entries; one process at a time. Use as a context manager.

    Args:
        path: the file; made where it is absent.
        header: what the vectors have in common; a file that is there must say the same.

    Raises:
        DataError: it belongs to other vectors, is damaged, or another process writes it.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        with storage_errors(path):
            # Python opens unbuffered appends; what was written survives a kill of this process.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._check(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write the lines of `entries`, in one call to the system.

        Raises:
            StorageFull: no space; a line that was cut off counts as not written.
        """
        data = b"".join(_ENCODE(entry) + b"\n" for entry in entries)
        with storage_errors(self.path):
            _write_all(self._file, data)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())

    def truncate(self, end: int) -> None:
        """Forget everything from byte `end` on."""
        self._file.truncate(end)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                str(self.path),
                expected="one process that writes it",
                found="another process that is writing it",
                remedy="Wait for the other one, or write to another file.",
            ) from error

    def _check(self, header: Header) -> None:
        self._file.seek(0)
        first, end, _ = self._file.read(_CHUNK).partition(b"\n")
        if not end:  # new, or cut off in its first line
            self._file.truncate(0)
            with storage_errors(self.path):
                _write_all(self._file, _ENCODE(header) + b"\n")
            return
        try:
            found = _DECODE_HEADER(first)
        except msgspec.DecodeError as error:
            raise _damaged(self.path, "its first line", error) from error
        if found != header:
            raise DataError(
                str(self.path),
                expected=f"vectors of {_named(header)}",
                found=f"vectors of {_named(found)}",
                remedy="Write to another file, or remove this one and its vectors to begin anew.",
            )


def read_entries(path: Path) -> Iterator[tuple[Entry, int]]:
    """Yield each entry with the byte at which its line ends. Stops before a line that was cut off.

    Raises:
        DataError: a line is damaged.
    """
    with open(path, "rb") as file:
        end = len(file.readline())
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                yield _DECODE_ENTRY(line), end
            except msgspec.DecodeError as error:
                raise _damaged(path, f"line {number}", error) from error


def _named(header: Header) -> str:
    limit = "" if header.max_pixels is None else f", at most {header.max_pixels} pixels"
    return f"model version {header.model_version}, {header.precision}, {header.dim} dimensions{limit}"


def _damaged(path: Path, where: str, error: Exception) -> DataError:
    return DataError(
        str(path),
        expected=f"an entry of a sidecar in {where}",
        found=str(error)[:200],
        remedy="Remove this file and its vectors and begin anew.",
    )


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
