"""One search in one read transaction: which way is taken, and that its answer is complete.

Letters: `D` the length of a vector, `k` answers, `M` rows that a filter allows.
"""

import math
from collections import OrderedDict
from typing import Final

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.breadth import ANSWERS, candidates
from pocketlens.runtime.store.entries import Vectors, hits_of, vectors_of
from pocketlens.runtime.store.filters import conditions
from pocketlens.runtime.store.held import Held, scan_blocks
from pocketlens.runtime.store.nearest import IndexHeader, Nearest
from pocketlens.runtime.store.rows import Filter, Hit
from pocketlens.runtime.store.words import by_words, fused, with_words
from pocketlens.runtime.store.writing import checked_vectors

__all__ = ["Query", "Searcher", "direction"]

_SCAN_ROWS: Final = 20_000
"""Of at most so many rows that a filter allows, every vector is compared."""
_WIDEST: Final = 4096
"""A filtered search that needs more candidates than this compares every vector that the filter allows."""
_KEPT_FILTERS: Final = 8
_FUSED_DEPTH: Final = 10


_UNLIKE_WEIGHT: Final = 0.5
"""How much of the unwanted direction is taken off a query."""


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


def direction(
    vector: NDArray[np.float32] | None, unlike: NDArray[np.float32] | None, dim: int
) -> NDArray[np.float32] | None:
    """Return the query `(D,)` for `vector`, away from `unlike`.

    Raises:
        StoreError: one has another shape or holds a number that is not finite.
    """
    if vector is None:
        return None
    query = vector
    if (
        query.__class__ is not np.ndarray
        or query.dtype != np.float32
        or query.shape != (dim,)
        or not query @ query < np.inf
    ):
        query = checked_vectors([vector], dim, ["the query"])[0]
    if unlike is None:
        return query
    away = query - _UNLIKE_WEIGHT * checked_vectors([unlike], dim, ["the unlike query"])[0]
    norm = float(np.linalg.norm(away))
    return np.asarray(away / norm if norm > 0 else away, dtype=np.float32)


class _Allowed:
    """The rows that a filter allows, and their vectors once they were all compared."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self.ids = ids
        self.vectors: list[Vectors] | None = None
        self._table: NDArray[np.bool_] | None = None

    def has(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of `ids (M,)` are allowed: `(M,)`."""
        if self._table is None:
            self._table = np.zeros(int(self.ids[-1]) + 2 if len(self.ids) else 1, dtype=bool)
            self._table[self.ids] = True
        return self._table[np.minimum(ids, len(self._table) - 1)]


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

    def held_answer(self, query: Query) -> list[Hit] | None:
        """Return the answers if the first search is enough and nothing has to be read for it, else `None`."""
        index, header, answers = self._held.index, self._held.header, self._held.answers
        if index is None or header is None or answers is None or query.vector is None or self._held.has_more():
            return None
        plain = not query.words and not query.unlike_words and not query.skip
        if not plain or self._filters.get(query.filter, self) is not None:
            return None
        most = candidates(header, query.k)
        places = answers.places(index.search(query.vector, most, self._scaled(header, header.narrow, most)))
        if len(places) < max(query.k, ANSWERS) or places.min() < 0:
            return None
        scores = answers.table(places) @ query.vector
        if header.narrow < header.breadth and np.partition(scores, -ANSWERS)[-ANSWERS] < header.near_score:
            return None
        return answers.held_hits(places, scores, query.k)

    def _near(self, connection: apsw.Connection, vector: NDArray[np.float32], k: int, wanted: Filter) -> list[Hit]:
        allowed = self._allowed(connection, wanted)
        held = self._held
        if allowed is not None and len(allowed.ids) <= _SCAN_ROWS and held.index is not None:
            return self._hits(connection, self._compared(connection, allowed, vector, k), vector, k)
        among = None if allowed is None else allowed.ids
        scanned = held.scan(connection, vector, k, among=among)
        if held.index is None:
            return self._hits(connection, scanned, vector, k)
        if allowed is None and (quick := self._first(connection, held.index, scanned, vector, k)) is not None:
            return quick
        share = 1.0 if allowed is None else len(allowed.ids) / max(held.rows, 1)
        most = k if held.header is None else candidates(held.header, k)
        width = int(most / max(share, 1e-9) * (1 if allowed is None else 1.3))
        while True:
            found = held.index.search(vector, min(width, len(held.index)), self._breadth(width))
            if allowed is not None:
                found = found[allowed.has(found)]
            hits = self._hits(connection, np.concatenate([found[:most], scanned]), vector, k)
            # Complete when k are alive. The k best that a filter allows are among the best of all as soon as
            # there are k of them; deleted rows that the index still knows count as not allowed.
            if len(hits) >= min(k, held.rows if among is None else len(among)) or width >= len(held.index):
                return hits
            width, most = width * 4, most * 4
            if width > _WIDEST and among is not None:
                blocks = vectors_of(connection, held.model, among.tolist())
                return self._hits(connection, scan_blocks(blocks, vector, k), vector, k)

    def _first(
        self,
        connection: apsw.Connection,
        index: Nearest,
        scanned: NDArray[np.int64],
        vector: NDArray[np.float32],
        k: int,
    ) -> list[Hit] | None:
        """Return the answer of the first search; `None` where that is not enough, see `breadth`."""
        header = self._held.header
        if header is None or self._held.answers is None:
            return None
        most = candidates(header, k)
        found = index.search(vector, most, self._scaled(header, header.narrow, most))
        least = header.near_score if header.narrow < header.breadth else -np.inf
        return self._enough(connection, found, scanned, vector, k, least)

    def answer_many(
        self, connection: apsw.Connection, queries: NDArray[np.float32], k: int, wanted: Filter
    ) -> list[list[Hit]]:
        """Return the answers to each of `queries (N, D)`; as `answer`, the index is asked once for all of them."""
        held = self._held
        index, header = held.index, held.header
        found: dict[int, list[Hit]] = {}
        if index is None or header is None or self._allowed(connection, wanted) is not None:
            return [self._near(connection, query, k, wanted) for query in queries]
        most, left = candidates(header, k), list(range(len(queries)))
        steps = [(header.narrow, header.near_score), (header.breadth, -np.inf)]
        for breadth, least in steps if header.narrow < header.breadth else steps[1:]:
            late: list[int] = []
            width = self._scaled(header, breadth, most)
            for number, ids in zip(left, index.search_many(queries[left], most, width), strict=True):
                scanned = held.scan(connection, queries[number], k)
                hits = self._enough(connection, ids[ids >= 0], scanned, queries[number], k, least)
                if hits is None:
                    late.append(number)
                else:
                    found[number] = hits
            left = late
        return [
            found[number] if number in found else self._near(connection, query, k, wanted)
            for number, query in enumerate(queries)
        ]

    def _enough(
        self,
        connection: apsw.Connection,
        found: NDArray[np.int64],
        scanned: NDArray[np.int64],
        vector: NDArray[np.float32],
        k: int,
        least: float,
    ) -> list[Hit] | None:
        """Return the answer from the rows `found`, `None` where the tenth best scores less than `least`."""
        answers = self._held.answers
        if answers is None or len(found) < ANSWERS:
            return None
        places = answers.places(found)
        rest = scanned
        if places.min() < 0:
            known = places >= 0
            places, rest = places[known], np.concatenate([found[~known], scanned])
        scores = answers.table(places) @ vector
        if len(scores) < ANSWERS or np.partition(scores, -ANSWERS)[-ANSWERS] < least:
            return None
        hits = self._answered(connection, places, scores, rest, vector, k)
        return hits if hits is not None and len(hits) >= min(k, self._held.rows) else None

    def _breadth(self, width: int) -> int:
        header = self._held.header
        return width if header is None else self._scaled(header, header.breadth, width)

    @staticmethod
    def _scaled(header: IndexHeader, breadth: int, width: int) -> int:
        """Return the breadth of a search for `width` candidates where `breadth` is that of one for ten answers."""
        # The breadth of a graph counts candidates, that of inverted lists counts lists.
        if header.kind == "hnsw":
            return max(breadth, width)
        return math.ceil(breadth * max(1.0, width / candidates(header, ANSWERS)))

    def _compared(
        self, connection: apsw.Connection, allowed: _Allowed, vector: NDArray[np.float32], k: int
    ) -> NDArray[np.int64]:
        if allowed.vectors is None:
            parts = list(vectors_of(connection, self._held.model, allowed.ids.tolist()))
            damaged = [index for part in parts for index in part.damaged]
            self._held.damaged.update(damaged)
            empty = np.empty(0, dtype=np.int64), np.empty((0, len(vector)), dtype=np.float32)
            # One table, for one large product instead of many small ones.
            ids = np.concatenate([empty[0], *(part.ids for part in parts)])
            table = np.concatenate([empty[1], *(part.table for part in parts)])
            allowed.vectors = [Vectors(ids, table, damaged)]
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
        self, connection: apsw.Connection, ids: NDArray[np.int64], vector: NDArray[np.float32], k: int
    ) -> list[Hit]:
        """Return the `k` best of the rows `ids` that are still there, best first."""
        answers = self._held.answers
        if answers is not None and len(ids):
            places = answers.places(ids)
            known = places >= 0
            scores = answers.table(places[known]) @ vector
            hits = self._answered(connection, places[known], scores, ids[~known], vector, k)
            if hits is not None:
                return hits
        return self._read(connection, ids, vector, k)

    def _answered(
        self,
        connection: apsw.Connection,
        places: NDArray[np.int64],
        scores: NDArray[np.float32],
        rest: NDArray[np.int64],
        vector: NDArray[np.float32],
        k: int,
    ) -> list[Hit] | None:
        """Return the `k` best of the rows at `places`, which score `scores`, and of the ids `rest`.

        `None` when somebody has begun to overwrite the file that the rows are read from.
        """
        answers = self._held.answers
        if answers is None:
            return None
        hits = answers.hits(connection, self._held.model, vector, places, scores, k)
        if hits is None:
            return None
        if not len(rest):
            return hits
        more = self._read(connection, rest, vector, k)
        return sorted([*hits, *more], key=lambda hit: (-hit.score, hit.id))[:k]

    def _read(
        self, connection: apsw.Connection, ids: NDArray[np.int64], vector: NDArray[np.float32], k: int
    ) -> list[Hit]:
        hits, damaged = hits_of(connection, self._held.model, ids.tolist(), vector, most=k)
        self._held.damaged.update(damaged)
        return hits
