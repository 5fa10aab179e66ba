"""One search in one read transaction: which way is taken, and that its answer is complete.

Letters: `D` the length of a vector, `k` answers, `M` rows that a filter allows.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.entries import Vectors, hits_of, vectors_of
from pocketlens.runtime.store.filters import conditions
from pocketlens.runtime.store.held import Held, scan_blocks
from pocketlens.runtime.store.rows import Filter, Hit
from pocketlens.runtime.store.words import by_words, fused, with_words

__all__ = ["Query", "Searcher"]

_RESCORED_SHARE: Final = 0.5
"""Of k: candidates of the index beyond k that are scored again. Rounding to int8 moves few ranks by more."""
_OVERSAMPLING: Final = 10
"""Candidates of a compressed index for each answer: product quantization mixes up many more ranks."""
_SCAN_ROWS: Final = 20_000
"""Of at most so many rows that a filter allows, every vector is compared."""
_WIDEST: Final = 4096
"""A filtered search that needs more candidates than this compares every vector that the filter allows."""
_KEPT_FILTERS: Final = 8
_FUSED_DEPTH: Final = 10


class Query(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is looked for.

    Attributes:
        vector: `(D,)` float32, unit norm; `None` for words alone.
        words: also rank by the words of captions, and fuse the two rankings.
        filter: which rows are looked at.
        k: how many answers.
        unlike_words: leave out rows whose caption has one of these words.
        skip: ids that are no answer.
    """

    vector: "NDArray[np.float32] | None"
    filter: Filter
    k: int
    words: str = ""
    unlike_words: str = ""
    skip: frozenset[int] = frozenset()


class _Allowed:
    """The rows that a filter allows, and their vectors once they were all compared."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self.ids = ids
        self.vectors: list[Vectors] | None = None


class Searcher:
    """Searches what `held` holds. `changed` must be called when the store has changed."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._filters: OrderedDict[Filter, _Allowed | None] = OrderedDict()

    def changed(self) -> None:
        """Forget what filters allowed."""
        self._filters.clear()

    def answer(self, connection: apsw.Connection, query: Query) -> list[Hit]:
        """Return the answers, best first. Runs inside the caller's read transaction, after `refresh`."""
        # What is left out afterwards must be found beforehand.
        depth = query.k + len(query.skip)
        if query.words or query.unlike_words:
            depth = max(depth * 4, _FUSED_DEPTH * query.k)
        near = self._near(connection, query.vector, depth, query.filter) if query.vector is not None else []
        if not query.words and not query.unlike_words:
            return [hit for hit in near if hit.id not in query.skip][: query.k]
        hits = {hit.id: hit for hit in near}
        ranking = list(hits)
        scores: dict[int, float] = {}
        if query.words:
            condition, values = conditions(query.filter)
            named = by_words(connection, self._held.model, query.words, depth, condition=condition, values=values)
            scores = fused(ranking, named)
            missing = [index for index in named if index not in hits]
            more, damaged = hits_of(connection, self._held.model, missing, query.vector)
            self._held.damaged.update(damaged)
            hits.update((hit.id, hit) for hit in more)
            ranking = sorted((index for index in scores if index in hits), key=lambda index: (-scores[index], index))
        unwanted = query.skip | with_words(connection, ranking, query.unlike_words)
        best = [hits[index] for index in ranking if index not in unwanted][: query.k]
        return [msgspec.structs.replace(hit, fused=scores[hit.id]) for hit in best] if query.words else best

    def _near(self, connection: apsw.Connection, vector: NDArray[np.float32], k: int, wanted: Filter) -> list[Hit]:
        allowed = self._allowed(connection, wanted)
        held = self._held
        if allowed is not None and len(allowed.ids) <= _SCAN_ROWS and held.index is not None:
            return self._hits(connection, self._compared(connection, allowed, vector, k), vector, k)
        among = None if allowed is None else allowed.ids
        scanned = held.scan(connection, vector, k, among=among)
        if held.index is None:
            return self._hits(connection, scanned, vector, k)
        share = 1.0 if allowed is None else len(allowed.ids) / max(held.rows, 1)
        more = math.ceil(k * _RESCORED_SHARE)
        needed = k + more if held.index.kind == "hnsw" else k * _OVERSAMPLING
        width = int(needed / max(share, 1e-9) * (1 if allowed is None else 1.3))
        most = needed
        while True:
            found = held.index.search(vector, min(width, len(held.index)), self._breadth(width))
            if among is not None:
                found = found[np.isin(found, among)]
            hits = self._hits(connection, [*found[:most].tolist(), *scanned.tolist()], vector, k)
            # Complete when k are alive. The k best that a filter allows are among the best of all as soon as
            # there are k of them; deleted rows that the index still knows count as not allowed.
            if len(hits) >= min(k, held.rows if among is None else len(among)) or width >= len(held.index):
                return hits
            width, most = width * 4, most * 4
            if width > _WIDEST and among is not None:
                blocks = vectors_of(connection, held.model, among.tolist())
                return self._hits(connection, scan_blocks(blocks, vector, k), vector, k)

    def _breadth(self, width: int) -> int:
        header = self._held.header
        breadth = 0 if header is None else header.breadth
        # The breadth of a graph counts candidates, that of inverted lists counts lists.
        return max(breadth, width) if header is not None and header.kind == "hnsw" else breadth

    def _compared(
        self, connection: apsw.Connection, allowed: _Allowed, vector: NDArray[np.float32], k: int
    ) -> NDArray[np.int64]:
        if allowed.vectors is None:
            allowed.vectors = list(vectors_of(connection, self._held.model, allowed.ids.tolist()))
            self._held.damaged.update(index for part in allowed.vectors for index in part.damaged)
        return scan_blocks(iter(allowed.vectors), vector, k)

    def _allowed(self, connection: apsw.Connection, wanted: Filter) -> _Allowed | None:
        """Return the rows that `wanted` allows; `None` for all of them."""
        if wanted in self._filters:
            self._filters.move_to_end(wanted)
            return self._filters[wanted]
        if self._is_everything(connection, wanted):
            return self._keep(wanted, None)
        condition, values = conditions(wanted)
        rows = connection.execute(
            f"SELECT e.id FROM files f JOIN entries e ON e.file = f.id WHERE e.model = ? AND {condition}",
            (self._held.model.id, *values),
        )
        ids = np.sort(np.fromiter((row[0] for row in rows), dtype=np.int64))
        return self._keep(wanted, None if len(ids) == self._held.rows else _Allowed(ids))

    def _keep(self, wanted: Filter, allowed: _Allowed | None) -> _Allowed | None:
        self._filters[wanted] = allowed
        if len(self._filters) > _KEPT_FILTERS:
            self._filters.popitem(last=False)
        return allowed

    @staticmethod
    def _is_everything(connection: apsw.Connection, wanted: Filter) -> bool:
        """Tell, for the filter of a plain search, whether the store has nothing else: one short index scan."""
        if wanted != Filter(tenant=wanted.tenant, visibility=wanted.visibility):
            return False
        groups = connection.execute("SELECT DISTINCT tenant, visibility FROM files").fetchall()
        return all(tenant == wanted.tenant and word in wanted.visibility for tenant, word in groups)

    def _hits(
        self, connection: apsw.Connection, ids: "Sequence[int] | NDArray[np.int64]", vector: NDArray[np.float32], k: int
    ) -> list[Hit]:
        """Return the `k` best of the rows `ids` that are still there, best first."""
        hits, damaged = hits_of(connection, self._held.model, ids, vector, most=k)
        self._held.damaged.update(damaged)
        return hits
