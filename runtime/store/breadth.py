"""How widely an index has to be searched: tried on queries, when it is built.

Two kinds of query are tried. One is like another picture: a stored vector and up to one and a half times the difference
of two of its neighbours. The other lies up to the middle between two stored vectors, outside the clusters, as the
vector of a text does; it needs more breadth, in a graph twice as much or more. There, whether a search was wide enough
shows in the score of the tenth best row: so it is narrow first, and wide when that score is low. In lists a wide search
costs little more than a narrow one, and there is one breadth for both.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.compressed import Compressed
from pocketlens.runtime.store.entries import Vectors
from pocketlens.runtime.store.nearest import IndexHeader, Nearest

__all__ = ["ANSWERS", "Breadths", "candidates", "is_enough", "measured_breadths", "sampled"]

ANSWERS: Final = 10
"""The trial asks for so many answers, and a query is told by the score of the last of them."""
_RECALL: Final = 0.99
_TRIAL_RECALL: Final = 0.995
"""More than is promised, because it costs little: queries that will be asked may be harder than those of the trial."""
_NARROW_RECALL: Final = 0.998
"""More than is promised: the vector that a query was made of leads to its neighbours, and a new picture has none."""
_AWAY: Final = 1.5
"""How much of the difference of two neighbours is added to a vector, for the same reason."""
_TRIALS: Final = {"hnsw": 200, "ivfpq": 400}
"""Queries of each kind; more of lists, which are searched quickly and where only some of the queries count."""
_FEWEST: Final = 100
"""Of fewer queries nothing is concluded."""
_SURE: Final = 1.645
"""So many standard errors below its mean a recall lies in five trials of a hundred."""
_BREADTHS: Final = {
    "hnsw": (64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
    "ivfpq": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048),
}
_NARROW: Final = (32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512)
_OVERSAMPLING: Final = {"hnsw": 1.5, "ivfpq": 10.0}
"""Candidates for each answer. Rounding to a byte moves few ranks; product quantization mixes up many more."""
_OVERSAMPLINGS: Final = (3, 5, 8, 12, 20, 40)
"""Of lists: one of these, by trial."""
_RESCORING: Final = 12.0
"""To score a candidate again takes as long as to compare so many codes: 0.3 µs and 0.025, measured in docs/store.md."""
_SHARE_OF_LISTS: Final = 10
"""Lists are no better than a graph where more than one of so many has to be searched: measured in docs/store.md."""
_SEED: Final = 20260101

Blocks = Callable[[], Iterator[Vectors]]


class Breadths(TypedDict):
    """The fields of `IndexHeader` of these names."""

    breadth: int
    narrow: int
    near_score: float
    recall: float
    oversampling: float


def candidates(header: IndexHeader, k: int) -> int:
    """Return how many rows a search for `k` takes from the index of `header`, to be scored again."""
    return math.ceil(max(k, ANSWERS) * (header.oversampling or _OVERSAMPLING[header.kind]))


def is_enough(index: Nearest, breadth: int, recall: float) -> bool:
    """Tell whether the trial of `index` found 99 %, and fast enough to keep the index where there may be another."""
    narrow = index.lists >= breadth * _SHARE_OF_LISTS if isinstance(index, Compressed) else True
    return narrow and recall >= _RECALL


def sampled(blocks: Iterator[Vectors], wanted: int, rows: int) -> NDArray[np.float32]:
    """Return about `wanted` of the vectors `(N, D)` in `blocks`, spread evenly."""
    step = max(1, rows // max(wanted, 1))
    return np.concatenate([table[::step] for _, table, _ in blocks])


def measured_breadths(index: Nearest, blocks: Blocks, rows: int) -> Breadths:
    """Return the smallest breadths that find 99 % of the nearest ten of the queries tried."""
    queries, half = _queries(index, blocks, rows)
    truths = _truths(blocks(), queries)
    if isinstance(index, Compressed):
        return _of_lists(index, queries, truths, half)
    return _of_graph(index, blocks, queries, truths, half)


def _queries(index: Nearest, blocks: Blocks, rows: int) -> tuple[NDArray[np.float32], int]:
    """Return the queries `(N, D)` of the trial, and how many of them, the first ones, are like a picture."""
    numbers, trials = np.random.default_rng(_SEED), _TRIALS[index.kind]
    pool = sampled(blocks(), 4 * trials, rows)
    pool = pool[numbers.permutation(len(pool))[: 2 * trials]]
    half = max(1, len(pool) // 2)
    strange = pool[:half] + np.roll(pool, 1, axis=0)[:half] * np.linspace(0, 1, half, dtype=np.float32)[:, None]
    away = np.linspace(0, _AWAY, half, dtype=np.float32)
    alike = pool[:half] + away[:, None] * _differences(index, blocks, pool[:half])
    return np.concatenate([_normed(alike), _normed(strange)]), half


def _of_lists(index: Compressed, queries: NDArray[np.float32], truths: NDArray[np.int64], half: int) -> Breadths:
    """Return the cheapest breadth and oversampling of those that are surely enough, else the widest."""
    most, known = ANSWERS * _OVERSAMPLINGS[-1], _BREADTHS[index.kind]
    # Those that are as far from what is stored as new pictures are, and those that are as far as texts.
    alike, strange = slice(half // 6, half // 2), slice(half + 2 * half // 3, None)
    best, least = Breadths(breadth=1, narrow=1, near_score=-1.0, recall=-1.0, oversampling=0.0), math.inf
    for width in [*(width for width in known if width < index.lists), index.lists]:
        scanned = width * len(index) / index.lists
        if scanned >= least:
            break  # whatever it finds, it costs more
        found = index.search_many(queries, most, width)
        right = np.cumsum((found[:, :, None] == truths[:, None, :]).any(axis=2), axis=1) / truths.shape[1]
        for factor in _OVERSAMPLINGS:
            recalls = right[:, min(most, ANSWERS * factor) - 1]
            recall = min(_surely(recalls[alike]), _surely(recalls[strange]))
            made = Breadths(breadth=width, narrow=width, near_score=-1.0, recall=recall, oversampling=float(factor))
            cost = scanned + _RESCORING * ANSWERS * factor if recall >= _TRIAL_RECALL else math.inf
            if cost < least or (least == math.inf and recall > best["recall"]):
                best, least = made, cost
    return best


def _surely(recalls: NDArray[np.float64]) -> float:
    """Return what the mean of `recalls (N,)` is with a certainty of 95 %, at least."""
    if len(recalls) < 2:
        return 0.0
    return float(recalls.mean() - _SURE * recalls.std(ddof=1) / math.sqrt(len(recalls)))


def _of_graph(
    index: Nearest, blocks: Blocks, queries: NDArray[np.float32], truths: NDArray[np.int64], half: int
) -> Breadths:
    widest = _BREADTHS[index.kind]
    is_far = np.arange(len(queries)) >= half + half // 2
    breadth, recalls = widest[-1], np.zeros(0)
    for width in widest:
        breadth, recalls = width, _recalls(index, queries[is_far], truths[is_far], width)
        if _surely(recalls) >= _TRIAL_RECALL:
            break
    best = Breadths(breadth=breadth, narrow=breadth, near_score=-1.0, recall=_surely(recalls), oversampling=0.0)
    least = float(breadth)
    widths = [narrow for narrow in _NARROW if narrow < breadth]
    found = [index.search_many(queries, _taken(index.kind), narrow) for narrow in widths]
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
            best["narrow"], best["near_score"], least = narrow, score, cost
    return best


def _taken(kind: str) -> int:
    return math.ceil(ANSWERS * _OVERSAMPLING[kind])


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
    found = index.search_many(queries, _taken(index.kind), breadth)
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
