"""The SQLite file under the store: how it is opened, checked and written, and what its errors mean."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from pocketlens.core.errors import StorageFull, StoreError
from pocketlens.runtime.store.schema import APPLICATION_ID, SCHEMA_VERSION, create_tables, migrate

__all__ = ["connect", "database_error", "database_errors", "from_column", "storable", "to_column", "transaction"]

_BUSY_MS: Final = 5000
_CACHE_KIB: Final = 64 * 1024
_NEARLY_FULL_BYTES: Final = 64 * 1024


def connect(path: Path, *, model_version: str | None, dim: int | None, dtype: str, create: bool) -> apsw.Connection:
    """Return a connection to the store at `path`, made if it is not there and `create` is true.

    A store of an older schema is brought to this one in one transaction.

    Raises:
        StoreError: no such store, damaged, or of another kind.
        StorageFull: no space.
    """
    if (not create or model_version is None or dim is None) and not path.exists():
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
            # In WAL mode NORMAL may forget the last commits when the power goes, and a batch that was reported as
            # indexed must be there: one sync per batch. EXTRA differs from FULL only before the log exists: after
            # a power cut, the rollback journal of the very first write could come back and undo everything.
            connection.pragma("synchronous", "extra")
            connection.pragma("journal_mode", "wal")
            # Deleted content is overwritten with zeros, and what would spill into a file stays in memory.
            connection.pragma("secure_delete", 1)
            connection.pragma("temp_store", "memory")
            # Rows of an answer lie all over the file: with SQLite's 2 MB of pages nearly each of them is read anew.
            connection.pragma("cache_size", -_CACHE_KIB)
            if not _is_ready(connection):
                with transaction(connection):
                    _prepare(connection, path, model_version, dim, dtype)
    except BaseException:
        with suppress(apsw.Error):  # what is being raised says more
            connection.close()
        raise
    return connection


def _is_ready(connection: apsw.Connection) -> bool:
    """Tell whether the file is a store of this schema, so that opening it takes no write lock."""
    found = (connection.pragma("application_id"), connection.pragma("user_version"))
    return found == (APPLICATION_ID, SCHEMA_VERSION)


def _prepare(connection: apsw.Connection, path: Path, model_version: str | None, dim: int | None, dtype: str) -> None:
    """Make the tables in a new file, or bring those of an older schema to this one."""
    if _is_ready(connection):
        return  # another process was first
    application, version = connection.pragma("application_id"), connection.pragma("user_version")
    if application == 0 and connection.pragma("schema_version") == 0:
        if model_version is None or dim is None:
            raise StoreError(
                f"store {path}", expected="a store", found="an empty database", remedy="Run `pocketlens index` first."
            )
        create_tables(connection, model_version=model_version, dim=dim, dtype=dtype)
    elif application == APPLICATION_ID and version == 1:
        migrate(connection)
    else:
        newer = application == APPLICATION_ID
        raise StoreError(
            f"store {path}",
            expected=f"a pocketlens store of schema {SCHEMA_VERSION} or older",
            found=f"schema {version}" if newer else "a database of another program",
            remedy="Upgrade pocketlens, or index into a new file." if newer else "Name another file.",
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
        raise database_error(error, path) from error


def database_error(error: apsw.Error, path: Path) -> StoreError | StorageFull:
    """Return what `error` of the store at `path` means."""
    if isinstance(error, apsw.FullError) or (_is_io(error) and _nearly_full(path)):
        return StorageFull(
            f"store {path}",
            expected="free space on the disk",
            found=str(error),
            remedy="Free some space and run the same command again; what was indexed is kept.",
        )
    expected, remedy = _meaning(error)
    return StoreError(f"store {path}", expected=expected, found=str(error), remedy=remedy)


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


def storable(text: str) -> str:
    """Return `text` without the surrogates that an odd file name leaves in a message."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
