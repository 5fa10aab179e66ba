"""Pictures by the million: where each one's bytes lie, in an order that is the same every time.

A source is a folder with everything below it, a webdataset (an uncompressed tar file, or a folder of
them), or a Parquet table with a column of encoded pictures (or a folder of them). Only references are
listed; bytes are read where a picture is embedded, which may be another process or machine that sees the same files.
"""

import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

import msgspec

from pocketlens.core.errors import DataError, EngineError, PictureError
from pocketlens.core.preprocess import read_bytes
from pocketlens.runtime.indexing import SUFFIXES

__all__ = ["Item", "list_items", "read_item"]

_COLUMNS: Final = ("image", "picture", "jpg", "jpeg", "png", "bytes", "content")
_NAMES: Final = ("path", "name", "key", "__key__", "id", "file")


class Item(msgspec.Struct, frozen=True):
    """One picture of a source.

    Attributes:
        name: what it is called in the output: a path relative to the folder, the member of a tar file behind
            the tar's name, or the row of a table.
        path: the file that holds its bytes.
        size_bytes: of the picture, 0 where only reading tells (a table).
        mtime_ns: of the file at `path`.
        offset: where its bytes begin in the file; -1 for the whole file.
        row_group: of a table, else -1.
        row: in its row group, else -1.
    """

    name: str
    path: str
    size_bytes: int
    mtime_ns: int
    offset: int = -1
    row_group: int = -1
    row: int = -1


def list_items(source: str | os.PathLike[str]) -> Iterator[Item]:
    """Yield the pictures of `source`, each folder's names sorted. Files with other suffixes, and links, are left out.

    Tables in a folder that have no column of pictures are left out too: a file of vectors is one.

    Raises:
        DataError: there is no such source, or a tar file or table cannot be read.
    """
    path = os.fspath(source)
    if not os.path.exists(path):
        raise _unusable(path, "nothing at that path")
    if os.path.isdir(path):
        yield from _folder(path, "")
    elif path.lower().endswith(".tar"):
        yield from _tar(path, "")
    elif path.lower().endswith(".parquet"):
        yield from _table(path, "")
    else:
        raise _unusable(path, "another kind of file")


def read_item(item: Item, max_bytes: int) -> bytes:
    """Return the encoded picture.

    Raises:
        PictureError: as `pocketlens.core.preprocess.read_bytes`.
    """
    if item.row_group >= 0:
        value = _cells(item.path, item.row_group)[item.row]
        return read_bytes(b"" if value is None else value, max_bytes=max_bytes)
    if item.offset < 0:
        return read_bytes(item.path, max_bytes=max_bytes)
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            return read_bytes(file.read(min(item.size_bytes, max_bytes + 1)), max_bytes=max_bytes)
    except OSError as error:
        raise PictureError(
            item.name,
            kind="unreadable",
            expected="a tar file that can be read",
            found=error.strerror or type(error).__name__,
            remedy="Check the permissions and the disk.",
        ) from error


def _folder(root: str, below: str) -> Iterator[Item]:
    try:
        with os.scandir(os.path.join(root, below)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unusable(os.path.join(root, below), error.strerror or type(error).__name__) from error
    for entry in entries:
        name = os.path.join(below, entry.name)
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir(follow_symlinks=False):
            yield from _folder(root, name)
        elif entry.is_symlink():
            continue
        elif suffix in SUFFIXES:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            yield Item(_text(name), entry.path, status.st_size, status.st_mtime_ns)
        elif suffix == ".tar":
            yield from _tar(entry.path, name)
        elif suffix == ".parquet" and _picture_column(_open_table(entry.path)) is not None:
            yield from _table(entry.path, name)


def _text(name: str) -> str:
    """Return a file's name as text that can be written down: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _tar(path: str, name: str) -> Iterator[Item]:
    prefix = _text(f"{name or os.path.basename(path)}/")
    try:
        mtime_ns = os.stat(path).st_mtime_ns
        # "r:" reads plain archives only: of a compressed one, no member has an offset.
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember a million of them
                if member.isreg() and os.path.splitext(member.name)[1].lower() in SUFFIXES:
                    yield Item(prefix + _text(member.name), path, member.size, mtime_ns, member.offset_data)
    except (OSError, tarfile.TarError) as error:
        raise _unusable(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _table(path: str, name: str) -> Iterator[Item]:
    prefix = _text(f"{name or os.path.basename(path)}/")
    file = _open_table(path)
    if _picture_column(file) is None:
        raise _unusable(path, f"columns {', '.join(map(str, file.schema_arrow))[:200]}")
    columns = file.schema_arrow.names
    names = next((column for column in _NAMES if column in columns), None)
    mtime_ns = os.stat(path).st_mtime_ns
    number = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        values = file.read_row_group(group, columns=[names])[names].to_pylist() if names else None
        for row in range(rows):
            label = str(number) if values is None else f"{number}/{values[row]}"
            yield Item(prefix + label, path, 0, mtime_ns, -1, group, row)
            number += 1


@lru_cache(maxsize=4)
def _cells(path: str, group: int) -> list[bytes | None]:
    """Return the encoded pictures of a row group; rows are asked for in order, so few groups are kept."""
    file = _open_table(path)
    column = _picture_column(file)
    values = file.read_row_group(group, columns=[column])[column].to_pylist()
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]


def _open_table(path: str) -> Any:
    try:
        parquet = import_module("pyarrow.parquet")
        arrow = import_module("pyarrow")
    except ImportError as error:
        raise EngineError(
            f"table {path}",
            expected="the package pyarrow",
            found=str(error),
            remedy="pip install pyarrow",
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise _unusable(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _picture_column(file: Any) -> str | None:
    """Return the column of encoded pictures: binary, or a struct with a binary field `bytes` as data sets have."""
    types = {field.name: str(field.type) for field in file.schema_arrow}
    fitting = [n for n, t in types.items() if t in ("binary", "large_binary") or t.startswith("struct<bytes: binary")]
    return next((name for name in (*_COLUMNS, *fitting) if name in fitting), None)


def _unusable(path: str, found: str) -> DataError:
    return DataError(
        path,
        expected="a folder of pictures, an uncompressed .tar file of them, or a .parquet table with a binary column",
        found=found,
        remedy="Check the path; single pictures are embedded by `pocketlens embed FILE`.",
    )
