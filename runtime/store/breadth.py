"""How widely an index has to be searched: tried on queries, when it is built.

Two kinds of query are tried. One is like another picture: a stored vector and up to one and a half times the difference
of two of its neighbours. The other lies up to the middle between two stored vectors, outside the clusters, as the
vector of a text does; it needs a breadth twice as large or more. Whether a search was wide enough shows in the score of
the tenth best row. So a search is narrow first, and wide when that score is low.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.entries import Vectors
from pocketlens.runtime.store.nearest import Nearest

__all__ = ["ANSWERS", "Breadths", "candidates", "measured_breadths", "sampled"]

ANSWERS: Final = 10
"""The trial asks for so many answers, and a query is told by the score of the last of them."""
_RECALL: Final = 0.99
_NARROW_RECALL: Final = 0.998
"""More than is promised: the vector that a query was made of leads to its neighbours, and a new picture has none."""
_AWAY: Final = 1.5
"""How much of the difference of two neighbours is added to a vector, for the same reason."""
_TRIALS: Final = 100
"""Queries of each kind."""
_FEWEST: Final = 50
"""Of fewer queries nothing is concluded."""
_BREADTHS: Final = {
    "hnsw": (64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
    "ivfpq": (8, 16, 32, 64, 128, 256),
}
_NARROW: Final = (32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512)
_OVERSAMPLING: Final = {"hnsw": 1.5, "ivfpq": 10.0}
"""Candidates for each answer. Rounding to a byte moves few ranks; product quantization mixes up many more."""
_SEED: Final = 20260101

Blocks = Callable[[], Iterator[Vectors]]


class Breadths(TypedDict):
    """The fields of `IndexHeader` of these names."""

    breadth: int
    narrow: int
    near_score: float


def candidates(kind: str, k: int) -> int:
    """Return how many rows a search for `k` takes from an index of `kind`, to be scored again."""
    return math.ceil(max(k, ANSWERS) * _OVERSAMPLING[kind])


def sampled(blocks: Iterator[Vectors], wanted: int, rows: int) -> NDArray[np.float32]:
    """Return about `wanted` of the vectors `(N, D)` in `blocks`, spread evenly."""
    step = max(1, rows // max(wanted, 1))
    return np.concatenate([table[::step] for _, table, _ in blocks])


def measured_breadths(index: Nearest, blocks: Blocks, rows: int) -> Breadths:
    """Return the smallest breadths that find 99 % of the nearest ten of the queries tried."""
    numbers = np.random.default_rng(_SEED)
    pool = sampled(blocks(), 4 * _TRIALS, rows)
    pool = pool[numbers.permutation(len(pool))[: 2 * _TRIALS]]
    half = max(1, len(pool) // 2)
    strange = pool[:half] + np.roll(pool, 1, axis=0)[:half] * np.linspace(0, 1, half, dtype=np.float32)[:, None]
    away = np.linspace(0, _AWAY, half, dtype=np.float32)
    alike = pool[:half] + away[:, None] * _differences(index, blocks, pool[:half])
    widest = _BREADTHS[index.kind]
    queries = np.concatenate([_normed(alike), _normed(strange)])
    truths = _truths(blocks(), queries)
    is_strange = np.arange(len(queries)) >= half
    breadth = next(
        (
            width
            for width in widest
            if _recalls(index, queries[is_strange], truths[is_strange], width).mean() >= _RECALL
        ),
        widest[-1],
    )
    best, least = Breadths(breadth=breadth, narrow=breadth, near_score=-1.0), float(breadth)
    widths = [narrow for narrow in _NARROW if index.kind == "hnsw" and narrow < breadth]
    found = [index.search_many(queries, candidates(index.kind, ANSWERS), narrow) for narrow in widths]
    for narrow, ids, scores in zip(widths, found, _tenth_scores(blocks(), queries, found), strict=True):
        recalls = np.array([np.isin(truth, row).mean() for truth, row in zip(truths, ids, strict=True)])
        # A search that missed the place found lower scores: beginning with the highest ones, how many are good?
        order = np.argsort(-scores, kind="stable")
        means = np.cumsum(recalls[order]) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(means >= _NARROW_RECALL)
        if not len(good) or good[-1] + 1 < _FEWEST:
            continue
        score = float(scores[order[good[-1]]])
        # What a picture costs on average: those below the score are searched twice. The first half of the queries
        # that are alike score as pictures do that are not stored; the second half score lower.
        cost = narrow + breadth * float(np.mean(scores[: (half + 1) // 2] < score))
        if cost < least:
            best, least = Breadths(breadth=breadth, narrow=narrow, near_score=score), cost
    return best


def _tenth_scores(
    blocks: Iterator[Vectors], queries: NDArray[np.float32], found: list[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Return for each array `(N, M)` of ids found the tenth best score of each query: `(N,)`."""
    if not found:
        return []
    wanted = np.unique(np.concatenate(found, axis=1))
    table = np.zeros((len(wanted), queries.shape[1]), dtype=np.float32)
    for ids, vectors, _ in blocks:
        places = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
        there = wanted[places] == ids
        table[places[there]] = vectors[there]
    scores = [np.einsum("nmd,nd->nm", table[np.searchsorted(wanted, ids)], queries) for ids in found]
    filled = [np.where(ids >= 0, score, np.float32(-2)) for ids, score in zip(found, scores, strict=True)]
    return [np.asarray(np.sort(score, axis=1)[:, -ANSWERS], dtype=np.float32) for score in filled]


def _normed(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _differences(index: Nearest, blocks: Blocks, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each of `vectors (N, D)` the difference of two of its neighbours."""
    near = index.search_many(vectors, 3, max(_BREADTHS[index.kind]))[:, 1:]
    found: dict[int, NDArray[np.float32]] = {}
    for ids, table, _ in blocks():
        found.update((int(ids[place]), np.array(table[place])) for place in np.flatnonzero(np.isin(ids, near)))
    none = np.zeros(vectors.shape[1], dtype=np.float32)
    return np.stack([found.get(one, none) - found.get(other, none) for one, other in near.tolist()])


def _recalls(
    index: Nearest, queries: NDArray[np.float32], truths: NDArray[np.int64], breadth: int
) -> NDArray[np.float64]:
    found = index.search_many(queries, candidates(index.kind, ANSWERS), breadth)
    return np.array([np.isin(truth, ids).mean() for truth, ids in zip(truths, found, strict=True)])


def _truths(blocks: Iterator[Vectors], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the ids of the nearest ten `(N, 10)`, fewer where there are fewer rows."""
    best = np.empty((len(queries), 0), dtype=np.float32)
    best_ids = np.empty((len(queries), 0), dtype=np.int64)
    for ids, table, _ in blocks:
        best = np.concatenate([best, queries @ table.T], axis=1)
        best_ids = np.concatenate([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))], axis=1)
        order = np.argsort(-best, axis=1)[:, :ANSWERS]
        best, best_ids = np.take_along_axis(best, order, axis=1), np.take_along_axis(best_ids, order, axis=1)
    return best_ids
