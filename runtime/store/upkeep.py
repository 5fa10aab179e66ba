"""Check, repair, compact and count: what keeps a store usable after bad luck."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import from_column
from pocketlens.runtime.store.encoding import blob_bytes
from pocketlens.runtime.store.nearest import index_folder_of
from pocketlens.runtime.store.rows import Dtype
from pocketlens.runtime.store.schema import entry_checksum, file_checksum

__all__ = ["Damage", "StoreStats", "find_damage", "raise_damage", "remove_damage", "store_stats"]

_BLOCK_ROWS: Final = 1024
_FILES: Final = """
SELECT id, checksum, tenant, file_id, version, sha256, size_bytes, mtime_ns, album, visibility, taken_at
FROM files ORDER BY id
"""
_ENTRIES: Final = """
SELECT e.id, e.checksum, e.vector, e.file, e.model, e.at_ms, e.until_ms, e.modality, e.dtype, e.caption, e.confidence,
       f.file_id, m.dim
FROM entries e LEFT JOIN files f ON f.id = e.file LEFT JOIN models m ON m.id = e.model ORDER BY e.id
"""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was written.

    Attributes:
        kind: `entry` (a vector or caption), `file` (what is known of a file), `words` (the index of the
            captions), or `database` (SQLite's own structure: not to be repaired row by row).
        id: of the row; 0 where it is no row.
        path: of the file, as far as it can be read.
        found: in words.
    """

    kind: str
    id: int
    path: str
    found: str


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a store. Sizes are bytes.

    Attributes:
        model_version: the one that answers.
        dim: D of it.
        dtype: how its vectors are kept.
        files: files of all tenants.
        rows: rows by model version.
        tenants: how many there are.
        refused: files that were refused.
        database: size of the file and its log.
        free: of that, unused pages.
        index: size of the index files.
        index_kind: `scan`, `hnsw` or `ivfpq`: how a search without a filter goes now.
        index_rows: rows that the index knows.
        erasures: receipts in the store.
    """

    model_version: str
    dim: int
    dtype: str
    files: int
    rows: dict[str, int]
    tenants: int
    refused: int
    database: int
    free: int
    index: int
    index_kind: str
    index_rows: int
    erasures: int


def find_damage(connection: apsw.Connection) -> Iterator[Damage]:
    """Yield what is wrong, SQLite's own structure first; after such a finding nothing else is looked at."""
    for (finding,) in connection.execute("PRAGMA integrity_check(20)").fetchall():
        if finding != "ok":
            yield Damage(kind="database", id=0, path="", found=str(finding))
            return
    for row in _rows(connection, _FILES):
        if file_checksum(*row[2:]) != row[1]:
            yield Damage(kind="file", id=row[0], path=from_column(row[3]), found="another checksum than was written")
    for row in _rows(connection, _ENTRIES):
        found = _entry_damage(row)
        if found:
            path = "" if row[11] is None else from_column(row[11])
            yield Damage(kind="entry", id=row[0], path=path, found=found)
    try:
        connection.execute("INSERT INTO words(words, rank) VALUES('integrity-check', 1)")
    except apsw.CorruptError as error:
        yield Damage(kind="words", id=0, path="", found=str(error))


def raise_damage(damages: Iterable[Damage], path: Path) -> None:
    """Raise the first of `damages`, if there is one.

    Raises:
        StoreError: there is one.
    """
    for damage in damages:
        where = f" ({damage.path})" if damage.path else ""
        raise StoreError(
            f"store {path}",
            expected="an undamaged store",
            found=f"{damage.kind} {damage.id}{where}: {damage.found}",
            remedy="Run `pocketlens store repair`, or move the file away and run `pocketlens index` again; "
            "the pictures are untouched.",
        )


def remove_damage(connection: apsw.Connection) -> int:
    """Remove the rows that are damaged and return how many there were; inside the caller's transaction.

    A file with a damaged row loses its other rows too: the next `index` sees it as new and makes all again.
    """
    damages = list(find_damage(connection))
    entries = {damage.id for damage in damages if damage.kind == "entry"}
    files = {damage.id for damage in damages if damage.kind == "file"}
    for index in entries:
        files.add(int(connection.execute("SELECT file FROM entries WHERE id = ?", (index,)).get))
    # The words of a damaged caption cannot be taken out one by one: all are made anew from what stays.
    connection.execute("DROP TRIGGER IF EXISTS entries_words_out")
    for file in files:
        connection.execute("DELETE FROM entries WHERE file = ?", (file,))
        connection.execute("DELETE FROM skipped WHERE file = ?", (file,))
        connection.execute("DELETE FROM files WHERE id = ?", (file,))
    connection.execute(
        "CREATE TRIGGER entries_words_out AFTER DELETE ON entries WHEN old.caption IS NOT NULL BEGIN "
        "INSERT INTO words(words, rowid, caption) VALUES('delete', old.id, old.caption); END"
    )
    connection.execute("INSERT INTO words(words) VALUES('rebuild')")
    return len(damages)


def store_stats(connection: apsw.Connection, path: Path, *, kind: str, index_rows: int) -> StoreStats:
    """Return what is in the store; inside the caller's read transaction."""

    def one(sql: str) -> Any:
        return connection.execute(sql).get

    version, dim, dtype = one("SELECT version, dim, dtype FROM models WHERE state = 'active'")
    by_model = "SELECT m.version, count(e.id) FROM models m LEFT JOIN entries e ON e.model = m.id GROUP BY m.id"
    rows: dict[str, int] = dict(connection.execute(by_model))
    folder = index_folder_of(path)
    beside = [path, path.with_name(path.name + "-wal")]
    return StoreStats(
        model_version=version,
        dim=dim,
        dtype=dtype,
        files=one("SELECT count(*) FROM files"),
        rows=rows,
        tenants=one("SELECT count(DISTINCT tenant) FROM files"),
        refused=one("SELECT count(*) FROM refused"),
        database=sum(file.stat().st_size for file in beside if file.exists()),
        free=one("PRAGMA freelist_count") * one("PRAGMA page_size"),
        index=sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0,
        index_kind=kind,
        index_rows=index_rows,
        erasures=one("SELECT count(*) FROM receipts"),
    )


def _entry_damage(row: tuple[Any, ...]) -> str:
    _, digest, vector, *columns, path, dim = row
    if path is None:
        return "a row of no file"
    dtype: Dtype = columns[5]
    if dim is None or len(vector) != blob_bytes(dtype, dim):
        return "a vector of the wrong length"
    if entry_checksum(*columns, vector=vector) != digest:
        return "another checksum than was written"
    return ""


def _rows(connection: apsw.Connection, sql: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.execute(sql)
    while block := list(islice(cursor, _BLOCK_ROWS)):
        yield from block
