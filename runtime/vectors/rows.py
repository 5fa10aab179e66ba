"""Rows of float32 on the disk: a .npy file that grows, and a Parquet table made of it."""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError, storage_errors
from pocketlens.runtime.vectors.sidecar import Entry

__all__ = ["Rows", "check_parquet", "write_parquet"]

_HEADER_BYTES: Final = 128
_SCANNED_ROWS: Final = 8192
# A row that reached the disk has unit norm; one whose page did not is zeros, or partly so.
_NORM_TOLERANCE: Final = 1e-3


class Rows:
    """A file of float32 rows (N, D) in numpy's format, version 1.0, of which N is written when it is sealed.

    The header always has 128 bytes, so rows are appended and the header is filled in last.

    Args:
        path: made where it is absent.
        dim: D.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self.dim = dim
        with storage_errors(path):
            self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
            if os.fstat(self._file.fileno()).st_size < _HEADER_BYTES:
                self._file.truncate(0)
                self._write_header(0)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return how many whole rows are in the file, whatever its header says."""
        return (os.fstat(self._file.fileno()).st_size - _HEADER_BYTES) // (4 * self.dim)

    def intact(self, count: int) -> int:
        """Return how many of the first `count` rows are there, up to the first one without unit norm."""
        count = min(count, len(self))
        for first, rows in self.chunks(count):
            bad = np.flatnonzero(np.abs(np.linalg.norm(rows, axis=1) - 1) > _NORM_TOLERANCE)
            if len(bad):
                return first + int(bad[0])
        return count

    def chunks(self, count: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first `count` rows, some thousand at a time, with the number of the first of them."""
        with open(self.path, "rb") as file:
            file.seek(_HEADER_BYTES)
            for first in range(0, count, _SCANNED_ROWS):
                part = min(_SCANNED_ROWS, count - first)
                yield first, np.fromfile(file, np.dtype("<f4"), part * self.dim).reshape(part, self.dim)

    def truncate(self, count: int) -> None:
        """Keep the first `count` rows."""
        self._file.truncate(_HEADER_BYTES + 4 * self.dim * count)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Write rows (n, D).

        Raises:
            StorageFull: no space; a part of them may be in the file.
        """
        view = memoryview(np.ascontiguousarray(rows, np.dtype("<f4")).tobytes())
        with storage_errors(self.path):
            while view:
                view = view[self._file.write(view) or 0 :]

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())

    def seal(self, count: int) -> None:
        """Write into the header that there are `count` rows, so that `numpy.load` takes the file."""
        with storage_errors(self.path):
            self._write_header(count)
        self.sync()

    def _write_header(self, count: int) -> None:
        # NEP 1: magic, version, length of the text, then the text, blanks and a newline.
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {self.dim}), }}"
        start = npy.magic(1, 0) + (_HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(start + text.ljust(_HEADER_BYTES - 11).encode() + b"\n")


def write_parquet(path: Path, rows: Rows, count: int, entries: Iterator[Entry], metadata: dict[str, str]) -> None:
    """Write `path`: columns `file`, `sha256` and `vector`, one row for each entry that has a vector.

    Args:
        path: replaced when the new table is complete.
        rows: the vectors.
        count: how many of them.
        entries: those of the sidecar.
        metadata: stored with the table's schema.

    Raises:
        EngineError: pyarrow is not installed.
        StorageFull: no space.
    """
    arrow, parquet = _pyarrow(path)
    vector = arrow.list_(arrow.float32(), rows.dim)
    fields = [("file", arrow.string()), ("sha256", arrow.string()), ("vector", vector)]
    schema = arrow.schema(fields, metadata=metadata)
    accepted = (entry for entry in entries if entry.row is not None)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with storage_errors(path):
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for _, part in rows.chunks(count):
                here = [next(accepted) for _ in range(len(part))]
                vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(part.ravel()), rows.dim)
                columns = [[entry.file for entry in here], [entry.sha256 for entry in here], vectors]
                writer.write_table(arrow.table(columns, schema=schema))
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def check_parquet(path: Path) -> None:
    """Raise `EngineError` unless tables can be written here: to be asked before the work, not after it."""
    _pyarrow(path)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise EngineError(
            str(path), expected="the package pyarrow", found=str(error), remedy="pip install pyarrow, or write .npy."
        ) from error
