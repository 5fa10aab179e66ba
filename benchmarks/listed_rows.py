"""Vectors in clusters, stores that keep them in lists (IVF-PQ), and the check that searches of these are right.

For the benchmarks that kill, cut the power of, and erase from a store with lists: `ROWS` vectors in `CLUSTERS` are few
enough to be quick and fit their lists well enough that the store's own trial takes them.
"""

import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store import Dtype, Store
from pocketlens.runtime.store.nearest import index_folder_of

__all__ = ["ROWS", "clustered_vector", "has_lists", "opened", "require_lists", "searched", "tear_index"]

ROWS, CLUSTERS, NOISE = 4_000, 70, 0.4
EXACT_ROWS, SEARCHES, K = 500, 3, 10
LEAST_BY_LISTS = 0.95
_STRANGER = 1 << 30  # the version of vectors that no store has: of queries


@cache
def _centre(cluster: int, dim: int) -> NDArray[np.float64]:
    centre: NDArray[np.float64] = np.random.default_rng([7, cluster]).normal(size=dim)
    return centre / np.linalg.norm(centre)


@cache
def clustered_vector(file: int, version: int, dim: int) -> NDArray[np.float32]:
    """Return the vector `(dim,)` of unit norm that `version` of `file` has; all versions lie in the same cluster."""
    noise = np.random.default_rng([file, version]).normal(size=dim)
    vector = _centre(file % CLUSTERS, dim) + NOISE * noise / np.sqrt(dim)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def opened(path: Path, dim: int, *, lists: bool, dtype: Dtype = "fp32") -> Store:
    """Return the store at `path`, one that has an index as soon as it is worth trying if `lists`."""
    if not lists:
        return Store.open(path, model_version="v", dim=dim, dtype=dtype)
    return Store.open(path, model_version="v", dim=dim, dtype=dtype, exact_rows=EXACT_ROWS, threads=1)


def has_lists(store: Store) -> bool:
    """Tell whether `store` searches lists now."""
    return store.stats().index_kind == "ivfpq"


def require_lists(by_lists: int, of: int) -> None:
    """End the run if the store had lists in fewer than nearly all cases: it measured something else."""
    if by_lists < LEAST_BY_LISTS * of:
        raise SystemExit(f"expected a store that searches lists (ivfpq), found that {by_lists} times of {of}")


def searched(path: Path, dim: int, expected: Mapping[int, int], numbers: random.Random) -> Counter[str]:
    """Return the counts of some searches of the store at `path`, which must hold exactly `expected`, by lists.

    `expected`: the version of each file, 0 of one that is gone. An answer is wrong that is none of these, or whose
    score is not that of its vector.
    """
    live = [file for file, version in expected.items() if version]
    table = np.stack([clustered_vector(file, expected[file], dim) for file in live])
    counts = Counter[str]()
    with opened(path, dim, lists=True) as store:
        counts["index gone"] += store.stats().index_kind == "scan"
        store.prepare()
        counts["by lists"] += has_lists(store)
        for _ in range(SEARCHES):
            query = clustered_vector(numbers.randrange(ROWS), _STRANGER, dim)
            nearest = {live[place] for place in np.argsort(-(table @ query))[:K].tolist()}
            for hit in store.search(query, k=K):
                file = int(hit.path.rpartition("/")[2])
                version = expected.get(file, 0)
                right = clustered_vector(file, version, dim) @ query if version else -2.0
                counts["wrong answers"] += abs(hit.score - float(right)) > 1e-5
                counts["nearest found"] += file in nearest
            counts["nearest"] += len(nearest)
    return counts


def tear_index(store: Path, numbers: random.Random) -> bool:
    """Cut a file of the index short, or make its end zeros, as a loss of power does to what was not synced."""
    files = sorted(index_folder_of(store).glob("*"))
    if not files:
        return False
    torn = numbers.choice(files)
    size = torn.stat().st_size
    with torn.open("r+b") as file:
        file.truncate(numbers.randrange(max(1, size)))
        if numbers.random() < 0.5:
            file.truncate(size)
    return True
