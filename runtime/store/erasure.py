"""Deletion that is true: afterwards the erased vectors and captions are in no file of the store.

What has to go, and how: rows and the words of their captions (`secure_delete` overwrites what is freed, FTS5's
own option removes words instead of marking them), the write-ahead log (`wal_checkpoint(TRUNCATE)`), the
indexes (overwritten and removed; they are built again from the rows that stay). SQLite can leave a copy of a
row behind when it moves rows between pages, and such a copy is not overwritten when the row is deleted: so the
files are searched for what was erased, and written anew (VACUUM) when anything is found.

Beyond reach: what the file system, the disk or a backup keeps of overwritten blocks.
"""

import hashlib
import mmap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import to_column, transaction
from pocketlens.runtime.store.nearest import drop_index, index_folder_of
from pocketlens.runtime.store.rows import Receipt
from pocketlens.runtime.store.writing import delete_files

__all__ = ["erase_scope", "finish_erasures", "residue_patterns", "residues", "rewrite"]

_PATTERN_BYTES: Final = 16
_MOST_SEARCHED_ROWS: Final = 64
"""Of more rows than this a sample is searched for, and the file is written anew without looking first."""
_SAMPLED_ROWS: Final = 16
_FILES: Final = {
    "file": "SELECT id FROM files WHERE tenant = ? AND file_id = ?",
    "album": "SELECT id FROM files WHERE tenant = ? AND album = ?",
    "tenant": "SELECT id FROM files WHERE tenant = ?",
}
_REFUSED: Final = {
    "file": "DELETE FROM refused WHERE tenant = ? AND path = ?",
    "tenant": "DELETE FROM refused WHERE tenant = ?",
}
_BUSY_TRIES: Final = 50
_BUSY_PAUSE_S: Final = 0.1


def erase_scope(
    connection: apsw.Connection, path: Path, *, file: str | None, album: str | None, tenant: str
) -> Receipt:
    """Erase a file, an album, or everything of `tenant`, and return the receipt. No transaction must be open.

    Raises:
        StoreError: something is still to be found, because another process holds on to an old state.
    """
    scope = "file" if file is not None else "album" if album is not None else "tenant"
    name = file if file is not None else album or ""
    digest = hashlib.sha256(f"{tenant}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
    now = int(time.time())
    key = (tenant,) if scope == "tenant" else (tenant, to_column(name))
    with transaction(connection):
        # Found and deleted in one transaction: what another process adds meanwhile is not half erased.
        files = [row[0] for row in connection.execute(_FILES[scope], key)]
        patterns, many = _patterns_of(connection, files)
        rows = delete_files(connection, files)
        if scope in _REFUSED:
            connection.execute(_REFUSED[scope], key)
        connection.execute(
            "INSERT INTO receipts(erased_at, scope, subject_sha256, files, rows) VALUES(?, ?, ?, ?, ?)",
            (now, scope, digest, len(files), rows),
        )
        receipt = connection.last_insert_rowid()
    searched, left, rewritten = _cleaned(connection, path, patterns, rewrite_first=many)
    with transaction(connection):
        connection.execute("UPDATE receipts SET residues = ? WHERE id = ?", (left, receipt))
    return Receipt(
        id=receipt,
        erased_at=now,
        scope=scope,
        subject_sha256=digest,
        files=len(files),
        rows=rows,
        bytes_searched=searched,
        patterns=len(patterns),
        residues=left,
        rewritten=rewritten,
    )


def finish_erasures(connection: apsw.Connection, path: Path) -> int:
    """Finish erasures that a kill interrupted after their rows were deleted, and return how many there were.

    What was erased is not known any more, so the file is written anew without looking.
    """
    pending = connection.execute("SELECT count(*) FROM receipts WHERE residues IS NULL").get
    if pending:
        drop_index(path)
        rewrite(connection, path)
        with transaction(connection):
            connection.execute("UPDATE receipts SET residues = 0 WHERE residues IS NULL")
    return int(pending)


def residue_patterns(blob: bytes, caption: str | None) -> list[bytes]:
    """Return pieces of a stored vector and its caption that no other row is likely to hold."""
    middle = max(0, (len(blob) - _PATTERN_BYTES) // 2)
    pieces = [blob[:_PATTERN_BYTES], blob[middle : middle + _PATTERN_BYTES], blob[-_PATTERN_BYTES:]]
    if caption:
        pieces.append(caption.encode("utf-8"))
    return [piece for piece in pieces if len(piece) >= _PATTERN_BYTES // 2]


def residues(path: Path, patterns: Sequence[bytes]) -> tuple[int, list[bytes]]:
    """Return how many bytes the files of the store have, and those of `patterns` that are in one of them."""
    found: set[bytes] = set()
    searched = 0
    for file in _files(path):
        size = file.stat().st_size
        searched += size
        if size == 0:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            found.update(pattern for pattern in patterns if view.find(pattern) >= 0)
    return searched, sorted(found)


def rewrite(connection: apsw.Connection, path: Path) -> None:
    """Write the whole file anew, rows alone, and empty the log.

    Raises:
        StoreError: another process holds on to an old state.
        apsw.FullError: no space for the copy; the store is as it was.
    """
    # Of what is copied through a temporary file nothing is to be erased; in memory it might not fit.
    connection.pragma("temp_store", "file")
    try:
        connection.execute("VACUUM")
    finally:
        connection.pragma("temp_store", "memory")
    _empty_log(connection, path)


def _cleaned(
    connection: apsw.Connection, path: Path, patterns: Sequence[bytes], *, rewrite_first: bool
) -> tuple[int, int, bool]:
    drop_index(path)
    if rewrite_first:
        rewrite(connection, path)
    else:
        _empty_log(connection, path)
    searched, left = _searched(connection, path, patterns)
    rewritten = rewrite_first
    if left and not rewritten:
        rewrite(connection, path)
        rewritten = True
        searched, left = _searched(connection, path, patterns)
    if left:
        raise StoreError(
            f"store {path}",
            expected="none of the erased bytes in any file of the store",
            found=f"{left} of {len(patterns)} pieces",
            remedy="Close every other program that uses the store and run `pocketlens store compact`.",
        )
    return searched, left, rewritten


def _searched(connection: apsw.Connection, path: Path, patterns: Sequence[bytes]) -> tuple[int, int]:
    """Return the bytes searched and how many patterns are left that no row which stays holds as well.

    A row that stays may: a copy of the picture, or another picture with the same caption.
    """
    sql = "SELECT 1 FROM entries WHERE instr(vector, ?1) OR instr(CAST(caption AS BLOB), ?1) LIMIT 1"
    searched, found = residues(path, patterns)
    return searched, sum(connection.execute(sql, (pattern,)).get is None for pattern in found)


def _patterns_of(connection: apsw.Connection, files: Sequence[int]) -> tuple[list[bytes], bool]:
    """Return what to search for, and whether there is too much of it to search for all."""
    patterns: list[bytes] = []
    rows = 0
    for file in files:
        for blob, caption in connection.execute("SELECT vector, caption FROM entries WHERE file = ?", (file,)):
            rows += 1
            if rows <= _SAMPLED_ROWS or (rows <= _MOST_SEARCHED_ROWS and len(files) <= _MOST_SEARCHED_ROWS):
                patterns += residue_patterns(blob, caption)
    return patterns, rows > _MOST_SEARCHED_ROWS


def _empty_log(connection: apsw.Connection, path: Path) -> None:
    for _ in range(_BUSY_TRIES):
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").get[0] == 0:
            return
        time.sleep(_BUSY_PAUSE_S)
    raise StoreError(
        f"store {path}",
        expected="a store that nobody else reads, so that its log can be emptied",
        found="a reader that holds on to the state before the erasure",
        remedy="The rows are gone from every answer. Close the other program and run `pocketlens store compact`: "
        "it finishes the erasure.",
    )


def _files(path: Path) -> list[Path]:
    beside = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-journal")]
    folder = index_folder_of(path)
    return [file for file in (*beside, *(sorted(folder.iterdir()) if folder.is_dir() else ())) if file.is_file()]
