"""The tables of a store, and the way from the first schema to this one.

A row of `entries` never changes: what replaces it gets a new id, and no id is used twice. So whatever was
derived from an entry (an index, a matrix in memory) is right about it for as long as the id is there.
"""

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import apsw

from pocketlens.runtime.store.encoding import checksum

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "create_tables", "entry_checksum", "file_checksum", "migrate"]

APPLICATION_ID: Final = 0x506C656E
"""Marks the file as a pocketlens store ("Plen"); SQLite keeps it in the header."""
SCHEMA_VERSION: Final = 2
_BLOCK_ROWS: Final = 1024

_TABLES: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE models(
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    version TEXT NOT NULL UNIQUE,
    dim     INTEGER NOT NULL,
    dtype   TEXT NOT NULL CHECK(dtype IN ('fp32', 'fp16', 'int8', 'binary')),
    state   TEXT NOT NULL CHECK(state IN ('active', 'shadow', 'previous'))
) STRICT;
-- At most one of each: one model version answers, one fills, one can be rolled back to.
CREATE UNIQUE INDEX models_state ON models(state);
CREATE TABLE files(
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT NOT NULL,
    file_id    ANY NOT NULL,          -- text; a blob where the name is not valid UTF-8
    version    INTEGER NOT NULL,
    sha256     BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    album      TEXT,
    visibility TEXT NOT NULL,
    taken_at   INTEGER,               -- seconds since 1970
    indexed_at INTEGER NOT NULL,      -- seconds since 1970
    checksum   BLOB NOT NULL,
    UNIQUE(tenant, file_id)
) STRICT;
CREATE INDEX files_sha256 ON files(sha256);
CREATE INDEX files_seen ON files(tenant, visibility);
CREATE INDEX files_album ON files(tenant, album) WHERE album IS NOT NULL;
CREATE INDEX files_taken ON files(tenant, taken_at) WHERE taken_at IS NOT NULL;
CREATE TABLE entries(
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    file       INTEGER NOT NULL REFERENCES files(id),
    model      INTEGER NOT NULL REFERENCES models(id),
    at_ms      INTEGER NOT NULL,
    until_ms   INTEGER,
    modality   TEXT NOT NULL,
    dtype      TEXT NOT NULL,
    caption    TEXT,
    confidence REAL,
    checksum   BLOB NOT NULL,
    vector     BLOB NOT NULL,
    UNIQUE(file, model, at_ms)
) STRICT;
CREATE INDEX entries_model ON entries(model, id, file);
CREATE TABLE refused(
    tenant  TEXT NOT NULL,
    path    ANY NOT NULL,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL,
    UNIQUE(tenant, path)
) STRICT;
-- Files that a model upgrade could not look at; the switch does not wait for them.
CREATE TABLE skipped(model INTEGER NOT NULL, file INTEGER NOT NULL, PRIMARY KEY(model, file)) STRICT, WITHOUT ROWID;
CREATE TABLE receipts(
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    erased_at      INTEGER NOT NULL,
    scope          TEXT NOT NULL,
    subject_sha256 TEXT NOT NULL,
    files          INTEGER NOT NULL,
    rows           INTEGER NOT NULL,
    residues       INTEGER              -- NULL until the files were searched
) STRICT;
-- The words of the captions; the text itself stays in entries alone.
CREATE VIRTUAL TABLE words USING fts5(
    caption, content='entries', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
);
-- Without it, FTS5 only marks a deleted entry and keeps its words until the next merge.
INSERT INTO words(words, rank) VALUES('secure-delete', 1);
CREATE TRIGGER entries_words_in AFTER INSERT ON entries WHEN new.caption IS NOT NULL BEGIN
    INSERT INTO words(rowid, caption) VALUES(new.id, new.caption);
END;
CREATE TRIGGER entries_words_out AFTER DELETE ON entries WHEN old.caption IS NOT NULL BEGIN
    INSERT INTO words(words, rowid, caption) VALUES('delete', old.id, old.caption);
END;
"""


def create_tables(connection: apsw.Connection, *, model_version: str, dim: int, dtype: str) -> None:
    """Make the tables of an empty store for one model. Runs inside the caller's transaction."""
    connection.execute(_TABLES)
    connection.execute("INSERT INTO meta VALUES('store_id', ?)", (os.urandom(16).hex(),))
    connection.execute(
        "INSERT INTO models(version, dim, dtype, state) VALUES(?, ?, ?, 'active')", (model_version, dim, dtype)
    )
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", SCHEMA_VERSION)


def migrate(connection: apsw.Connection) -> None:
    """Bring a store of schema 1 to this one. Runs inside the caller's transaction: all of it or nothing."""
    version, dim = connection.execute("SELECT version, dim FROM model").get
    connection.execute("ALTER TABLE pictures RENAME TO old_pictures")
    connection.execute("ALTER TABLE refused RENAME TO old_refused")
    create_tables(connection, model_version=version, dim=dim, dtype="fp32")
    model = connection.last_insert_rowid()
    # The order of ids is the order of indexing, and equal scores are answered in that order.
    cursor = connection.execute(
        "SELECT id, path, sha256, size_bytes, mtime_ns, indexed_at, vector, caption, confidence "
        "FROM old_pictures WHERE model_version = ? ORDER BY id",
        (version,),
    )
    for block in _blocks(cursor):
        files, entries = [], []
        for number, path, sha256, size, mtime, indexed_at, vector, caption, confidence in block:
            file = ("", path, 0, sha256, size, mtime, None, "visible", None)
            files.append((number, *file, indexed_at, file_checksum(*file)))
            entry = (number, model, 0, None, "image", "fp32", caption, confidence)
            entries.append((number, *entry, entry_checksum(*entry, vector=vector), vector))
        connection.executemany("INSERT INTO files VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", files)
        connection.executemany("INSERT INTO entries VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", entries)
    connection.execute("INSERT INTO refused SELECT '', path, kind, message FROM old_refused")
    connection.execute("DROP TABLE old_pictures; DROP TABLE old_refused; DROP TABLE model")


def file_checksum(*columns: object) -> bytes:
    """Return the checksum of a file: tenant, file_id, version, sha256, size, mtime, album, visibility, taken_at."""
    return checksum(*columns)


def entry_checksum(*columns: object, vector: bytes) -> bytes:
    """Return the checksum of an entry: file, model, at_ms, until_ms, modality, dtype, caption, confidence."""
    return checksum(*columns, vector=vector)


def _blocks(cursor: apsw.Cursor) -> Iterator[list[Any]]:
    while block := list(islice(cursor, _BLOCK_ROWS)):
        yield block
