"""Rows into the tables: idempotent by (tenant, file, version) and checksum."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import storable, to_column
from pocketlens.runtime.store.encoding import encode
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.rows import Known, Refused, Row, Written
from pocketlens.runtime.store.schema import entry_checksum, file_checksum

__all__ = ["checked_vectors", "delete_files", "label_files", "put_refused", "put_rows", "remove_paths", "touch_files"]

_FILE = "SELECT id, version, sha256 FROM files WHERE tenant = ? AND file_id = ?"
_UPDATE_FILE = """
UPDATE files SET version = ?, sha256 = ?, size_bytes = ?, mtime_ns = ?, album = ?, visibility = ?, taken_at = ?,
                 indexed_at = ?, checksum = ? WHERE id = ?
"""
_INSERT_FILE = """
INSERT INTO files(tenant, file_id, version, sha256, size_bytes, mtime_ns, album, visibility, taken_at, indexed_at,
                  checksum) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id
"""
_INSERT_ENTRY = """
INSERT INTO entries(file, model, at_ms, until_ms, modality, dtype, caption, confidence, checksum, vector)
VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def checked_vectors(vectors: Sequence[NDArray[Any]], dim: int, names: Sequence[str]) -> NDArray[np.float32]:
    """Return `vectors` as `(N, D)` float32.

    Raises:
        StoreError: one has another shape or holds a number that is not finite; `names` says which.
    """
    table = np.empty((len(vectors), dim), dtype=np.float32)
    for index, vector in enumerate(vectors):
        array = np.asarray(vector, dtype=np.float32)
        if array.shape != (dim,) or not np.isfinite(array).all():
            raise StoreError(
                names[index],
                expected=f"finite numbers of shape ({dim},)",
                found=f"shape {array.shape}, finite: {bool(np.isfinite(array).all())}",
                remedy="Use the vectors of the lens that this store was opened for.",
            )
        table[index] = array
    return table


def put_rows(
    connection: apsw.Connection, model: Model, rows: Sequence[Row], *, replace: bool, filling: bool
) -> Written:
    """Write `rows`; those of one file must follow one another and are together all that the file has.

    `filling`: an upgrade adds the rows of its model to files as they are; rows of other bytes than a file had
    then are ignored. Runs inside the caller's transaction.
    """
    table = checked_vectors([row.vector for row in rows], model.dim, [f"the vector of {row.path}" for row in rows])
    blobs = iter(encode(table, model.dtype))
    added = unchanged = older = 0
    for (tenant, path), group in groupby(rows, key=lambda row: (row.tenant, row.path)):
        members = list(group)
        vectors = [next(blobs) for _ in members]
        row, name = members[0], to_column(path)
        before = connection.execute(_FILE, (tenant, name)).get
        unwanted = filling if before is None else (filling and before[2] != row.sha256) or row.version < before[1]
        if unwanted:
            older += 1
            continue
        _forget_refusals(connection, [(tenant, name)])
        same = before is not None and before[2] == row.sha256 and (filling or row.version == before[1])
        file = before[0] if filling else _put_file(connection, row, name, None if before is None else before[0])
        if same and not replace and _positions(connection, file, model) == sorted(item.at_ms for item in members):
            unchanged += 1
            continue
        # Other bytes: what any model said about the old ones is gone with them.
        others = "" if before is not None and before[2] != row.sha256 else " AND model = ?"
        parameters = (file, model.id) if others else (file,)
        connection.execute(f"DELETE FROM entries WHERE file = ?{others}", parameters)
        connection.executemany(_INSERT_ENTRY, _entries(file, model, members, vectors))
        connection.execute(f"DELETE FROM skipped WHERE file = ?{others}", parameters)
        added += 1
    return Written(added=added, unchanged=unchanged, older=older)


def _put_file(connection: apsw.Connection, row: Row, name: str | bytes, file: int | None) -> int:
    album = None if row.album is None else storable(row.album)
    columns = (row.version, row.sha256, row.size_bytes, row.mtime_ns, album, row.visibility, row.taken_at)
    digest = file_checksum(row.tenant, name, *columns)
    now = int(time.time())
    if file is None:
        return int(connection.execute(_INSERT_FILE, (row.tenant, name, *columns, now, digest)).get)
    connection.execute(_UPDATE_FILE, (*columns, now, digest, file))
    return file


def _positions(connection: apsw.Connection, file: int, model: Model) -> list[int]:
    sql = "SELECT at_ms FROM entries WHERE file = ? AND model = ? ORDER BY at_ms"
    return [at for (at,) in connection.execute(sql, (file, model.id))]


def _entries(
    file: int, model: Model, rows: Sequence[Row], vectors: Sequence[bytes]
) -> Iterator[tuple[int | str | bytes | float | None, ...]]:
    for row, vector in zip(rows, vectors, strict=True):
        caption = None if row.caption is None else storable(row.caption)
        confidence = None if row.confidence is None else float(row.confidence)
        columns = (file, model.id, row.at_ms, row.until_ms, row.modality, model.dtype, caption, confidence)
        yield (*columns, entry_checksum(*columns, vector=vector), vector)


def touch_files(connection: apsw.Connection, known: Sequence[Known], tenant: str) -> None:
    """Note new sizes and times of files whose bytes are as before."""
    for item in known:
        _change_file(connection, (tenant, to_column(item.path)), size_bytes=item.size_bytes, mtime_ns=item.mtime_ns)
    _forget_refusals(connection, [(tenant, to_column(item.path)) for item in known])


def label_files(connection: apsw.Connection, paths: Sequence[str], tenant: str, changes: dict[str, object]) -> int:
    """Change `album` or `visibility` of files and return how many there were."""
    return sum(_change_file(connection, (tenant, to_column(path)), **changes) for path in paths)


def _change_file(connection: apsw.Connection, key: tuple[str, str | bytes], **changes: object) -> bool:
    names = ("version", "sha256", "size_bytes", "mtime_ns", "album", "visibility", "taken_at")
    found = connection.execute(f"SELECT {','.join(names)} FROM files WHERE tenant = ? AND file_id = ?", key).get
    if found is None:
        return False
    columns = {**dict(zip(names, found, strict=True)), **changes}
    sets = ",".join(f"{name} = ?" for name in names)
    values: list[Any] = [*columns.values(), file_checksum(*key, *columns.values()), *key]
    connection.execute(f"UPDATE files SET {sets}, checksum = ? WHERE tenant = ? AND file_id = ?", values)
    return True


def put_refused(connection: apsw.Connection, refused: Sequence[Refused], tenant: str) -> None:
    """Remember `refused`; a row that such a file had goes."""
    remove_paths(connection, [item.path for item in refused], tenant)
    connection.executemany(
        "INSERT INTO refused VALUES(?, ?, ?, ?)",
        [(tenant, to_column(item.path), item.kind, storable(item.message)) for item in refused],
    )


def remove_paths(connection: apsw.Connection, paths: Sequence[str], tenant: str) -> None:
    """Forget files and refusals by path."""
    keys = [(tenant, to_column(path)) for path in paths]
    found = [connection.execute(_FILE, key).get for key in keys]
    delete_files(connection, [row[0] for row in found if row is not None])
    _forget_refusals(connection, keys)


def delete_files(connection: apsw.Connection, files: Sequence[int]) -> int:
    """Delete files by their number, with all their entries, and return how many entries there were."""
    keys = [(file,) for file in files]
    count = "SELECT count(*) FROM entries WHERE file = ?"
    gone = sum(connection.execute(count, key).get for key in keys)
    connection.executemany("DELETE FROM entries WHERE file = ?", keys)
    connection.executemany("DELETE FROM skipped WHERE file = ?", keys)
    connection.executemany("DELETE FROM files WHERE id = ?", keys)
    return int(gone)


def _forget_refusals(connection: apsw.Connection, keys: Sequence[tuple[str, str | bytes]]) -> None:
    connection.executemany("DELETE FROM refused WHERE tenant = ? AND path = ?", keys)
