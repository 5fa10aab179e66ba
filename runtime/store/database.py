"""The SQLite file under the store: how it is opened, checked and written, and what its errors mean."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from pocketlens.core.errors import StorageFull, StoreError

__all__ = ["connect", "database_errors", "from_column", "to_column", "transaction"]

_APPLICATION_ID: Final = 0x506C656E
"""Marks the file as a pocketlens store ("Plen"); SQLite keeps it in the header."""
_SCHEMA_VERSION: Final = 1
_BUSY_MS: Final = 5000
_NEARLY_FULL_BYTES: Final = 64 * 1024

_SCHEMA: Final = """
CREATE TABLE model(version TEXT NOT NULL, dim INTEGER NOT NULL) STRICT;
CREATE TABLE pictures(
    id            INTEGER PRIMARY KEY,
    path          ANY NOT NULL UNIQUE,  -- text; a blob where the name is not valid UTF-8
    sha256        BLOB NOT NULL,
    size_bytes    INTEGER NOT NULL,
    mtime_ns      INTEGER NOT NULL,
    model_version TEXT NOT NULL,
    dim           INTEGER NOT NULL,
    vector        BLOB NOT NULL,        -- little-endian float32, dim of them
    caption       TEXT,
    confidence    REAL,
    indexed_at    INTEGER NOT NULL      -- seconds since 1970
) STRICT;
CREATE TABLE refused(
    path    ANY NOT NULL UNIQUE,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
"""


def connect(path: Path, *, model_version: str, dim: int, create: bool) -> apsw.Connection:
    """Return a connection to the store at `path`, made if it is not there and `create` is true.

    Raises:
        StoreError: no such store, damaged, of another kind, or of another model.
        StorageFull: no space.
    """
    if not create and not path.exists():
        raise StoreError(
            f"store {path}",
            expected="a store made by `pocketlens index`",
            found="nothing at that path",
            remedy="Run `pocketlens index` first, or check the path.",
        )
    with database_errors(path):
        connection = apsw.Connection(os.fspath(path))
    try:
        with database_errors(path):
            connection.set_busy_timeout(_BUSY_MS)
            connection.pragma("journal_mode", "wal")
            # FULL, not NORMAL: in WAL mode NORMAL may forget the last commits when the power goes,
            # and a batch that was reported as indexed must be there. It costs one sync per batch.
            connection.pragma("synchronous", "full")
            with transaction(connection):
                _prepare(connection, path, model_version, dim)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: apsw.Connection, path: Path, model_version: str, dim: int) -> None:
    """Make the tables in a new file, or check that an old one is a store of this model."""
    application = connection.pragma("application_id")
    if application == 0 and connection.pragma("schema_version") == 0:
        connection.execute(_SCHEMA)
        connection.execute("INSERT INTO model VALUES(?, ?)", (model_version, dim))
        connection.pragma("application_id", _APPLICATION_ID)
        connection.pragma("user_version", _SCHEMA_VERSION)
        return
    version = connection.pragma("user_version")
    if application != _APPLICATION_ID or version != _SCHEMA_VERSION:
        newer = application == _APPLICATION_ID
        raise StoreError(
            f"store {path}",
            expected=f"a pocketlens store of schema {_SCHEMA_VERSION}",
            found=f"schema {version}" if newer else "a database of another program",
            remedy="Upgrade pocketlens, or index into a new file." if newer else "Name another file.",
        )
    found = connection.execute("SELECT version, dim FROM model").fetchall()
    if found != [(model_version, dim)]:
        words = ", ".join(f"{name} with {size} dimensions" for name, size in found) or "none"
        raise StoreError(
            f"store {path}",
            expected=f"vectors of model version {model_version} with {dim} dimensions",
            found=words,
            remedy="Vectors of two models cannot be compared: load the bundle that this store was made "
            "with, or index into a new file.",
        )


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Run the block as one write transaction: all of it is durable afterwards, or nothing happened."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some failures (a full disk among them) have rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says about the store at `path` into `StoreError` or `StorageFull`."""
    try:
        yield
    except apsw.Error as error:
        if isinstance(error, apsw.FullError) or (_is_io(error) and _nearly_full(path)):
            raise StorageFull(
                f"store {path}",
                expected="free space on the disk",
                found=str(error),
                remedy="Free some space and run the same command again; what was indexed is kept.",
            ) from error
        expected, remedy = _meaning(error)
        raise StoreError(f"store {path}", expected=expected, found=str(error), remedy=remedy) from error


def _is_io(error: apsw.Error) -> bool:
    return isinstance(error, (apsw.IOError, apsw.CantOpenError))


def _nearly_full(path: Path) -> bool:
    """Tell whether the disk is full: SQLite calls that an I/O error when it happens in the WAL index."""
    try:
        return shutil.disk_usage(path.parent).free < _NEARLY_FULL_BYTES
    except OSError:
        return False


def _meaning(error: apsw.Error) -> tuple[str, str]:
    """Return what was expected and what can be done."""
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError, apsw.FormatError)):
        return (
            "an undamaged SQLite file",
            "Move the file away and run `pocketlens index` again; the pictures themselves are untouched.",
        )
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return "a store that nobody else writes to", "Wait for the other command to end and try again."
    return (
        "a file that can be opened, read and written",
        "Check that the folder exists, its permissions, and the disk.",
    )


def to_column(path: str) -> str | bytes:
    """Return `path` as SQLite stores it: text, or bytes where the file name is not valid UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def from_column(value: object) -> str:
    """Return the path that `to_column` stored."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
