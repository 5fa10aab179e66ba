"""Entries out of the tables, each against its checksum.

Letters: `N` entries, `D` the length of a vector.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.database import from_column
from pocketlens.runtime.store.encoding import blob_bytes, decode
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.rows import Hit
from pocketlens.runtime.store.schema import entry_checksum, file_checksum

__all__ = [
    "Vectors",
    "all_file_digests",
    "count_entries",
    "entry_ids",
    "file_digests",
    "hits_of",
    "sound_rows",
    "stored_vectors",
    "vectors_of",
]

_BLOCK_ROWS: Final = 4096
_IDS_AT_ONCE: Final = 256
_ENTRY: Final = "file, model, at_ms, until_ms, modality, dtype, caption, confidence"
_FILE: Final = "f.tenant, f.file_id, f.version, f.sha256, f.size_bytes, f.mtime_ns, f.album, f.visibility, f.taken_at"
_ROW: Final = (
    f"SELECT e.id, e.checksum, e.vector, {', '.join('e.' + name for name in _ENTRY.split(', '))}, f.checksum, {_FILE} "
    "FROM entries e JOIN files f ON f.id = e.file WHERE "
)
# The plus keeps SQLite from going through the index of models, which took 2.5 × as long.
_HIT: Final = _ROW + "e.id IN ({}) AND +e.model = ?"
_DIGEST: Final = (
    "SELECT e.id, f.checksum FROM entries e JOIN files f ON f.id = e.file WHERE e.id IN ({}) AND +e.model = ?"
)


class Vectors(NamedTuple):
    """`ids (N,)` int64, ascending; `table (N, D)` float32; `damaged`: ids of rows that failed their checksum."""

    ids: NDArray[np.int64]
    table: NDArray[np.float32]
    damaged: list[int]


def count_entries(connection: apsw.Connection, model: Model) -> int:
    """Return how many entries `model` has."""
    return int(connection.execute("SELECT count(*) FROM entries WHERE model = ?", (model.id,)).get)


def entry_ids(connection: apsw.Connection, model: Model, *, above: int = 0) -> NDArray[np.int64]:
    """Return the ids of `model`'s entries greater than `above`, ascending: `(N,)`."""
    rows = connection.execute("SELECT id FROM entries WHERE model = ? AND id > ? ORDER BY id", (model.id, above))
    return np.fromiter((row[0] for row in rows), dtype=np.int64)


def stored_vectors(connection: apsw.Connection, model: Model, *, above: int = 0) -> Iterator[Vectors]:
    """Yield the vectors of entries with an id greater than `above`, some thousands at a time, by id."""
    sql = f"SELECT id, checksum, vector, {_ENTRY} FROM entries WHERE model = ? AND id > ? ORDER BY id"
    cursor = connection.execute(sql, (model.id, above))
    while block := list(islice(cursor, _BLOCK_ROWS)):
        yield _stacked(block, model)


def vectors_of(connection: apsw.Connection, model: Model, ids: Sequence[int]) -> Iterator[Vectors]:
    """Yield the vectors of those of `ids` that are entries of `model`, some hundreds at a time."""
    for first in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[first : first + _IDS_AT_ONCE]
        sql = (
            f"SELECT id, checksum, vector, {_ENTRY} FROM entries "
            f"WHERE id IN ({_marks(part)}) AND +model = ? ORDER BY id"
        )
        yield _stacked(connection.execute(sql, (*_padded(part), model.id)).fetchall(), model)


def sound_rows(connection: apsw.Connection, model: Model) -> Iterator[list[Any]]:
    """Yield the rows of `model` that are as they were written, some thousands at a time, by id.

    A row is id, checksum and vector of an entry, its columns, the checksum of its file, and that one's columns.
    """
    cursor = connection.execute(_ROW + "e.model = ? ORDER BY e.id", (model.id,))
    while block := list(islice(cursor, _BLOCK_ROWS)):
        yield [row for row in block if _is_sound(row, model) and file_checksum(*row[12:]) == row[11]]


def file_digests(connection: apsw.Connection, model: Model, ids: Sequence[int]) -> dict[int, bytes]:
    """Return the checksum of its file for each of `ids` that is an entry of `model`."""
    found: dict[int, bytes] = {}
    for first in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[first : first + _IDS_AT_ONCE]
        rows: list[Any] = connection.execute(_DIGEST.format(_marks(part)), (*_padded(part), model.id)).fetchall()
        found.update(rows)
    return found


def all_file_digests(connection: apsw.Connection, model: Model) -> Iterator[tuple[NDArray[np.int64], bytes]]:
    """Yield the ids of `model`'s entries, ascending, and the checksums of their files, one behind the other.

    Some thousands at a time; a row takes a fortieth of the time that it takes `file_digests`.
    """
    sql = "SELECT e.id, f.checksum FROM entries e JOIN files f ON f.id = e.file WHERE e.model = ? ORDER BY e.id"
    cursor = connection.execute(sql, (model.id,))
    while block := list(islice(cursor, _BLOCK_ROWS)):
        ids, digests = zip(*block, strict=True)
        yield np.array(ids, dtype=np.int64), b"".join(digests)


def hits_of(
    connection: apsw.Connection,
    model: Model,
    ids: Iterable[int],
    query: NDArray[np.float32] | None,
    *,
    most: int | None = None,
) -> tuple[list[Hit], list[int]]:
    """Return the `most` best of the entries `ids` as hits, best first, and ids of those that failed a checksum.

    Scores are cosines with `query (D,)` of the vectors as they are stored; 0 without a query. Of equal ones the
    entry that was written first comes first. Only what is returned was checked.
    """
    wanted = list(ids)
    rows: list[Any] = []
    for first in range(0, len(wanted), _IDS_AT_ONCE):
        part = wanted[first : first + _IDS_AT_ONCE]
        rows += connection.execute(_HIT.format(_marks(part)), (*_padded(part), model.id)).fetchall()
    length = blob_bytes(model.dtype, model.dim)
    fitting = [row for row in rows if len(row[2]) == length]
    damaged = [row[0] for row in rows if len(row[2]) != length]
    scores = [0.0] * len(fitting)
    if query is not None and fitting:
        scores = (decode([row[2] for row in fitting], model.dtype, model.dim) @ query).tolist()
    hits: list[Hit] = []
    for score, _, row in sorted((-score, row[0], row) for score, row in zip(scores, fitting, strict=True)):
        if len(hits) == most:
            break
        if not _is_sound(row, model) or file_checksum(*row[12:]) != row[11]:
            damaged.append(row[0])
            continue
        hits.append(
            Hit(
                id=row[0],
                path=from_column(row[13]),
                score=-score,
                caption=row[9],
                confidence=row[10],
                tenant=row[12],
                modality=row[7],
                at_ms=row[5],
                until_ms=row[6],
                album=row[18],
                visibility=row[19],
                taken_at=row[20],
            )
        )
    return hits, damaged


def _stacked(block: Sequence[Any], model: Model) -> Vectors:
    good = [row for row in block if _is_sound(row, model)]
    sound = {row[0] for row in good} if len(good) < len(block) else None
    damaged = [] if sound is None else [row[0] for row in block if row[0] not in sound]
    ids = np.fromiter((row[0] for row in good), dtype=np.int64, count=len(good))
    return Vectors(ids, decode([row[2] for row in good], model.dtype, model.dim), damaged)


def _is_sound(row: Sequence[Any], model: Model) -> bool:
    """Tell whether an entry (id, checksum, vector, then its columns) is as it was written."""
    vector = row[2]
    return (
        row[8] == model.dtype
        and len(vector) == blob_bytes(model.dtype, model.dim)
        and entry_checksum(*row[3:11], vector=vector) == row[1]
    )


def _padded(ids: Sequence[int]) -> list[int]:
    """Return `ids`, filled up so that SQLite sees few different statements and keeps them prepared."""
    return [int(index) for index in ids] + [-1] * (_width(len(ids)) - len(ids))


def _marks(ids: Sequence[int]) -> str:
    return ",".join("?" * _width(len(ids)))


def _width(count: int) -> int:
    return next((width for width in (16, 32, 64) if count <= width), _IDS_AT_ONCE)
