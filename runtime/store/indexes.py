"""What one open store derives from its rows, kept in step with them: vectors in memory, an index, filters."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.answers import Answers, write_answers
from pocketlens.runtime.store.building import build_index, extend_index, index_kinds, load_index
from pocketlens.runtime.store.entries import count_entries
from pocketlens.runtime.store.held import Held
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.nearest import index_folder_of, write_index, write_rows
from pocketlens.runtime.store.query import Query, Searcher
from pocketlens.runtime.store.rows import Filter, Hit

__all__ = ["Indexes"]

_STALE_SHARE: Final = 0.2
"""An index of which this share belongs to deleted rows is built anew."""
_EXTEND_ROWS: Final = 1000
"""Fewer new rows than this are compared one by one instead of being added to the index."""


class Indexes:
    """Answers searches of one model version. Every method runs inside the caller's read transaction.

    Attributes:
        held: vectors and index.
    """

    def __init__(
        self, connection: apsw.Connection, path: Path, model: Model, *, memory: int, exact_rows: int, threads: int
    ) -> None:
        self.held = Held(path, model, memory_bytes=memory)
        self._connection = connection
        self._path = path
        self._model = model
        self._memory = memory
        self._exact_rows = exact_rows
        self._threads = threads
        self._searcher = Searcher(self.held)
        self._seen: object = None
        self._index_seen: object = None
        self._store_id = str(connection.execute("SELECT value FROM meta WHERE name = 'store_id'").get)

    def changed(self) -> None:
        """Note that this connection wrote; what others write is seen without it."""
        self._seen = None

    def forget(self) -> None:
        """Hold nothing any more, not even what was read from the index's file."""
        self.held.forget()
        self._searcher.changed()
        self._seen = self._index_seen = None

    def keep_up(self, serving: Callable[[], object]) -> None:
        """See what changed since the last time; then ask `serving`, which raises when there is nothing to serve."""
        version = self._connection.execute("PRAGMA data_version").get
        if version == self._seen:
            if self.held.answers is not None:
                self.held.answers.look(self._connection, self._model)
            return
        serving()
        self._searcher.changed()
        if self.held.answers is not None:
            self.held.answers.changed()
        self._load()
        self.held.refresh(self._connection)
        if self.held.answers is not None:
            self.held.answers.look(self._connection, self._model)
        self._seen = version

    def held_answer(self, query: Query) -> list[Hit] | None:
        """Return the answers if nothing has changed and nothing has to be read for them, else `None`.

        It runs outside of a transaction: one look at SQLite's counter is all that it takes.
        """
        if self._seen is None or self._connection.execute("PRAGMA data_version").get != self._seen:
            return None
        return self._searcher.held_answer(query)

    def answer(self, query: Query) -> list[Hit]:
        """Return the answers, best first; after `keep_up`."""
        return self._searcher.answer(self._connection, query)

    def answer_many(self, queries: NDArray[np.float32], k: int, wanted: Filter) -> list[list[Hit]]:
        """Return the answers to each of `queries (N, D)`, best first; after `keep_up`."""
        return self._searcher.answer_many(self._connection, queries, k, wanted)

    def prepare(self, serving: Callable[[], object], progress: Callable[[int, int], None] | None) -> None:
        """Build, extend or renew the index where the store's size asks for one; `serving` as in `keep_up`."""
        held, rows = self.held, count_entries(self._connection, self._model)
        kinds = index_kinds(rows, self._model.dim, self._memory)
        if rows <= self._exact_rows or not kinds:
            return
        self.keep_up(serving)
        index, header = held.index, held.header
        stale = len(index or ()) > (1 + _STALE_SHARE) * rows
        if index is None or header is None or header.kind not in kinds or stale:
            index = header = None
        elif rows - len(index) < _EXTEND_ROWS:
            return
        rows_file, answers = None, None
        if "hnsw" in kinds:
            # First, because the index is built from what was read and checked for it.
            rows_file = write_rows(
                self._path,
                self._model.id,
                lambda path: write_answers(path, self._connection, self._model, rows=rows),
            )
            answers = Answers.load(rows_file, self._model)
        if index is not None and header is not None:
            header = extend_index(index, header, self._connection, self._model, rows=rows, kinds=kinds, answers=answers)
        if index is None or header is None:
            index, header = build_index(
                self._connection,
                self._model,
                store_id=self._store_id,
                rows=rows,
                kinds=kinds,
                threads=self._threads,
                answers=answers,
                progress=progress,
            )
        header = write_index(self._path, index, header, rows=rows_file)
        held.use_index(index, header, answers)
        held.refresh(self._connection)
        if answers is not None:
            answers.look(self._connection, self._model)
        self._searcher.changed()
        self._index_seen = self._mark()

    def _load(self) -> None:
        mark = self._mark()
        if mark == self._index_seen:
            return
        self._index_seen = mark
        found = None
        if mark is not None:
            found = load_index(
                self._path, self._model, store_id=self._store_id, budget_bytes=self._memory, threads=self._threads
            )
        self.held.use_index(*(found or (None, None, None)))

    def _mark(self) -> object:
        """Return something that changes when another index is put in place; `None` when there is none."""
        try:
            status = (index_folder_of(self._path) / f"{self._model.id}.json").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
