"""What one open store holds in memory of one model version: an index, and the vectors that it does not know.

Letters: `N` vectors held, `D` the length of one, `k` answers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.answers import Answers
from pocketlens.runtime.store.encoding import bits_of
from pocketlens.runtime.store.entries import Vectors, count_entries, entry_ids, stored_vectors
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.nearest import IndexHeader, Nearest

__all__ = ["Held", "scan_blocks"]

_OVERSAMPLING: Final = 12
"""Candidates for each answer of a search by bits, which int8 rescores; measured in `benchmarks.search`."""


class Held:
    """Vectors in memory, kept in step with the store: call `refresh` inside a read transaction, then search.

    An entry never changes and its id is never used again, so keeping in step is: add what has a greater id,
    drop what is no longer there. The index may know deleted entries; who reads the rows finds them gone.

    Attributes:
        index: the approximate index, if there is one.
        header: of the index.
        answers: what the rows that the index knows answer with, if that lies beside it.
        damaged: ids of entries that failed their checksum.
        rows: how many entries the store has.
    """

    def __init__(self, path: Path, model: Model, *, memory_bytes: int) -> None:
        self.path = path
        self.model = model
        self.index: Nearest | None = None
        self.header: IndexHeader | None = None
        self.answers: Answers | None = None
        self.damaged: set[int] = set()
        self.rows = 0
        self._memory_bytes = memory_bytes
        self._ids = np.empty(0, dtype=np.int64)
        self._table: NDArray[Any] = self._shaped(np.empty((0, model.dim), dtype=np.float32))
        self._streams = False

    def refresh(self, connection: apsw.Connection) -> None:
        """Bring everything in step with the store."""
        self.rows = count_entries(connection, self.model)
        watermark = self.header.watermark if self.header is not None else 0
        live = entry_ids(connection, self.model, above=watermark)
        stays = np.isin(self._ids, live, assume_unique=True)
        if not stays.all():
            self._ids, self._table = self._ids[stays], self._table[stays]
        self._streams = len(live) * self._row_bytes() > self._memory_bytes
        if self._streams:
            self._forget_table()
            return
        known = int(self._ids[-1]) if len(self._ids) else watermark
        parts = list(stored_vectors(connection, self.model, above=known))
        if parts:
            self._ids = np.concatenate([self._ids, *(part.ids for part in parts)])
            self._table = np.concatenate([self._table, *(self._shaped(part.table) for part in parts)])
        self.damaged = (self.damaged & set(live.tolist())) | {index for part in parts for index in part.damaged}

    def use_index(self, index: Nearest | None, header: IndexHeader | None, answers: Answers | None) -> None:
        """Take an index, or none; the vectors that it knows are no longer held. `refresh` must follow."""
        self.index, self.header, self.answers = index, header, answers
        watermark = 0 if header is None else header.watermark
        if index is None:
            self._forget_table()
        else:
            newer = self._ids > watermark
            self._ids, self._table = self._ids[newer], self._table[newer]

    def scan(
        self, connection: apsw.Connection, query: NDArray[np.float32], k: int, *, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the ids of the `k` vectors nearest to `query (D,)` of those that the index does not know.

        With `binary` vectors: of more than k that are probably nearest. `among (M,)`: only these ids, ascending.
        """
        if self._streams:
            above = self.header.watermark if self.header is not None else 0
            return scan_blocks(stored_vectors(connection, self.model, above=above), query, k, among=among)
        ids, table = self._ids, self._table
        if among is not None:
            chosen = np.isin(ids, among, assume_unique=True)
            ids, table = ids[chosen], table[chosen]
        if self.model.dtype == "binary":
            distance = np.bitwise_count(table ^ bits_of(query[None])).sum(axis=1, dtype=np.int32)
            return ids[_best(-distance, k * _OVERSAMPLING)]
        return ids[_best(table @ query, k)]

    def has_more(self) -> bool:
        """Tell whether there are vectors that the index does not know."""
        return self._streams or len(self._ids) > 0

    def forget(self) -> None:
        """Hold nothing any more."""
        self.index = self.header = self.answers = None
        self._forget_table()
        self.damaged = set()

    def _forget_table(self) -> None:
        self._ids, self._table = self._ids[:0].copy(), self._table[:0].copy()

    def _shaped(self, table: NDArray[np.float32]) -> NDArray[Any]:
        return bits_of(table) if self.model.dtype == "binary" else table

    def _row_bytes(self) -> int:
        return self.model.dim // 8 + 8 if self.model.dtype == "binary" else 4 * self.model.dim + 8


def scan_blocks(
    blocks: Iterator[Vectors], query: NDArray[np.float32], k: int, *, among: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the ids of the `k` vectors in `blocks` nearest to `query (D,)`; memory does not grow with their number."""
    best = np.empty(0, dtype=np.float32)
    best_ids = np.empty(0, dtype=np.int64)
    for ids, table, _ in blocks:
        scores = table @ query
        if among is not None:
            chosen = np.isin(ids, among, assume_unique=True)
            ids, scores = ids[chosen], scores[chosen]  # noqa: PLW2901 -- the block is not used again
        best, best_ids = np.concatenate([best, scores]), np.concatenate([best_ids, ids])
        order = _best(best, k)
        best, best_ids = best[order], best_ids[order]
    return best_ids


def _best(scores: NDArray[np.float32] | NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Return where the `k` highest scores are; of equal ones at the edge, the first."""
    if len(scores) > 4 * k:
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        pool = np.flatnonzero(scores >= edge)
        return pool[np.argsort(-scores[pool], kind="stable")[:k]]
    return np.argsort(-scores, kind="stable")[:k]
