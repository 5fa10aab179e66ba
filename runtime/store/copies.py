"""The same bytes under another name, and pictures that are nearly the same.

Letters: `M` rows, `D` the length of a vector.
"""

from collections.abc import Collection
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.database import from_column
from pocketlens.runtime.store.encoding import blob_bytes, decode
from pocketlens.runtime.store.entries import hits_of, vectors_of
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.rows import Hit, Row
from pocketlens.runtime.store.schema import entry_checksum

__all__ = ["copied_rows", "duplicate_groups"]

_BLOCK_ROWS: Final = 2048
_ROWS: Final = """
SELECT e.checksum, e.vector, e.file, e.model, e.at_ms, e.until_ms, e.modality, e.dtype, e.caption, e.confidence,
       f.file_id, f.size_bytes, f.mtime_ns, f.version, f.album, f.visibility, f.taken_at
FROM files f JOIN entries e ON e.file = f.id
WHERE e.model = ? AND f.id = (
    SELECT min(g.id) FROM files g JOIN entries x ON x.file = g.id WHERE g.sha256 = ? AND g.tenant = ? AND x.model = ?
) ORDER BY e.at_ms
"""


def copied_rows(
    connection: apsw.Connection, model: Model, sha256s: Collection[bytes], tenant: str
) -> dict[bytes, list[Row]]:
    """Return, by checksum, the rows of the first file of `tenant` with these bytes; damaged ones are left out."""
    found: dict[bytes, list[Row]] = {}
    for sha256 in sha256s:
        rows: list[Row] = []
        for digest, vector, *columns in connection.execute(_ROWS, (model.id, sha256, tenant, model.id)):
            entry, (name, size, mtime, version, album, visibility, taken_at) = columns[:8], columns[8:]
            if len(vector) != blob_bytes(model.dtype, model.dim) or entry_checksum(*entry, vector=vector) != digest:
                rows = []
                break
            rows.append(
                Row(
                    path=from_column(name),
                    sha256=sha256,
                    size_bytes=size,
                    mtime_ns=mtime,
                    vector=decode([vector], model.dtype, model.dim)[0],
                    caption=entry[6],
                    confidence=entry[7],
                    tenant=tenant,
                    version=version,
                    modality=entry[4],
                    at_ms=entry[2],
                    until_ms=entry[3],
                    album=album,
                    visibility=visibility,
                    taken_at=taken_at,
                )
            )
        if rows:
            found[sha256] = rows
    return found


def duplicate_groups(connection: apsw.Connection, model: Model, *, least: float, tenant: str) -> list[list[Hit]]:
    """Return groups of rows linked by a cosine of `least` or more; every pair of rows is compared."""
    sql = "SELECT e.id FROM files f JOIN entries e ON e.file = f.id WHERE f.tenant = ? AND e.model = ? ORDER BY e.id"
    wanted = [row[0] for row in connection.execute(sql, (tenant, model.id))]
    parts = list(vectors_of(connection, model, wanted))
    if not parts:
        return []
    ids = np.concatenate([part.ids for part in parts])
    members = _linked(np.concatenate([part.table for part in parts]), least)
    groups = []
    for group in members:
        hits, _ = hits_of(connection, model, ids[group].tolist(), None)
        groups.append(sorted(hits, key=lambda hit: hit.id))
    return sorted(groups, key=lambda group: (-len(group), group[0].id))


def _linked(table: NDArray[np.float32], least: float) -> list[list[int]]:
    """Return the connected components, of two and more, of the graph of pairs in `table (M, D)` that are near."""
    leader = list(range(len(table)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for first in range(0, len(table), _BLOCK_ROWS):
        # Each pair once: a block against itself and everything behind it.
        near = table[first : first + _BLOCK_ROWS] @ table[first:].T >= least
        for left, right in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            one, other = find(first + int(left)), find(first + int(right))
            leader[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for index in range(len(table)):
        groups.setdefault(find(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]
