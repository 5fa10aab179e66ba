"""An index from the store: which kind, built in blocks, and tried before it is used.

Letters: `N` vectors, `D` the length of one.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store import compressed, graph
from pocketlens.runtime.store.compressed import Compressed
from pocketlens.runtime.store.entries import Vectors, stored_vectors
from pocketlens.runtime.store.graph import Graph, scale_for
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.nearest import IndexHeader, Nearest, read_index

__all__ = ["GRAPH_ROW_OVERHEAD_BYTES", "build_index", "extend_index", "index_kind", "load_index", "memory_bytes"]

GRAPH_ROW_OVERHEAD_BYTES: Final = 180
"""Links and bookkeeping of one vector in a graph of connectivity 16, measured with usearch's `memory_usage`."""
_RECALL: Final = 0.99
"""What the trial asks for, of queries that are harder than most."""
_TRIALS: Final = 100
_ANSWERS: Final = 10
_BREADTHS: Final = {
    "hnsw": (64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
    "ivfpq": (8, 16, 32, 64, 128, 256),
}
_SEED: Final = 20260101


def memory_bytes() -> int:
    """Return half of this machine's memory: what a store may hold by default."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 1 << 30


def index_kind(rows: int, dim: int, budget_bytes: int) -> str | None:
    """Return `hnsw`, or `ivfpq` where a graph of `rows` vectors would not fit into `budget_bytes`.

    Without FAISS it stays `hnsw`, and its file is mapped instead of loaded; without both there is none.
    """
    fits = rows * (dim + GRAPH_ROW_OVERHEAD_BYTES) <= budget_bytes
    if compressed.is_available() and not (fits and graph.is_available()):
        return "ivfpq"
    return "hnsw" if graph.is_available() else None


def build_index(
    connection: apsw.Connection,
    model: Model,
    *,
    store_id: str,
    rows: int,
    kind: str,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Nearest, IndexHeader]:
    """Return an index of all `rows` entries of `model`. Runs inside the caller's read transaction."""
    index = _empty(connection, model, rows=rows, kind=kind, threads=threads)
    watermark = _fill(index, connection, model, above=0, rows=rows, progress=progress)
    header = IndexHeader(
        store_id=store_id,
        model=model.id,
        kind=kind,
        dim=model.dim,
        watermark=watermark,
        scale=index.scale,
        breadth=_tried(index, kind, connection, model, rows),
    )
    return index, header


def extend_index(
    index: Nearest, header: IndexHeader, connection: apsw.Connection, model: Model, rows: int
) -> IndexHeader:
    """Add the entries that `index` does not know and return its new header."""
    watermark = _fill(index, connection, model, above=header.watermark, rows=rows, progress=None)
    return IndexHeader(
        store_id=header.store_id,
        model=header.model,
        kind=header.kind,
        dim=header.dim,
        watermark=max(watermark, header.watermark),
        scale=header.scale,
        breadth=_tried(index, header.kind, connection, model, rows),
    )


def load_index(
    store: Path, model: Model, *, store_id: str, budget_bytes: int, threads: int
) -> tuple[Nearest, IndexHeader] | None:
    """Return the index that lies beside the store, or `None` when there is none that can be trusted."""

    def load(path: Path, header: IndexHeader) -> Nearest:
        if header.kind == "ivfpq":
            if not compressed.is_available():
                raise OSError("FAISS is not installed")
            return Compressed.load(path)
        if not graph.is_available():
            raise OSError("usearch is not installed")
        mapped = header.bytes > budget_bytes
        return Graph.load(path, dim=header.dim, scale=header.scale, mapped=mapped, threads=threads)

    return read_index(store, store_id=store_id, model=model.id, dim=model.dim, load=load)


def _empty(connection: apsw.Connection, model: Model, *, rows: int, kind: str, threads: int) -> "Graph | Compressed":
    if kind == "hnsw":
        first = next(stored_vectors(connection, model)).table
        return Graph(model.dim, scale=scale_for(first), threads=threads)
    sample = _sample(connection, model, Compressed.training_rows(rows), rows)
    return Compressed.trained(sample, rows=rows)


def _fill(
    index: Nearest,
    connection: apsw.Connection,
    model: Model,
    *,
    above: int,
    rows: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    watermark = above
    for ids, table, _ in stored_vectors(connection, model, above=above):
        if len(ids):
            index.add(ids, table)
            watermark = max(watermark, int(ids[-1]))
        if progress is not None:
            progress(len(index), rows)
    return watermark


def _sample(connection: apsw.Connection, model: Model, wanted: int, rows: int) -> NDArray[np.float32]:
    """Return about `wanted` of the stored vectors `(N, D)`, spread evenly."""
    step = max(1, rows // max(wanted, 1))
    return np.concatenate([table[::step] for _, table, _ in stored_vectors(connection, model)])


def _tried(index: Nearest, kind: str, connection: apsw.Connection, model: Model, rows: int) -> int:
    """Return the smallest breadth that finds 99 % of the nearest ten of a hundred queries.

    The queries are stored vectors, each moved up to all the way to the middle between it and another one: outside
    the clusters, as the vector of a text is. Queries that stay nearer are found with half the breadth, and then
    strange ones are not: recall 0.967 was measured.
    """
    numbers = np.random.default_rng(_SEED)
    pool = _sample(connection, model, 2 * _TRIALS, rows)
    pairs = pool[numbers.permutation(len(pool))[: 2 * _TRIALS]]
    half = max(1, len(pairs) // 2)
    queries = pairs[:half] + np.roll(pairs, 1, axis=0)[:half] * np.linspace(0, 1, half, dtype=np.float32)[:, None]
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    truths = _truths(stored_vectors(connection, model), queries)
    breadths = _BREADTHS[kind]
    # As many as a search scores again.
    more = _ANSWERS + 5 if kind == "hnsw" else 10 * _ANSWERS
    for breadth in breadths:
        found = [set(index.search(query, more, breadth).tolist()) for query in queries]
        share = [len(truth & ids) / len(truth) for truth, ids in zip(truths, found, strict=True) if truth]
        if not share or float(np.mean(share)) >= _RECALL:
            return breadth
    return breadths[-1]


def _truths(blocks: Iterator[Vectors], queries: NDArray[np.float32]) -> list[set[int]]:
    best = np.empty((len(queries), 0), dtype=np.float32)
    best_ids = np.empty((len(queries), 0), dtype=np.int64)
    for ids, table, _ in blocks:
        best = np.concatenate([best, queries @ table.T], axis=1)
        best_ids = np.concatenate([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))], axis=1)
        order = np.argsort(-best, axis=1)[:, :_ANSWERS]
        best, best_ids = np.take_along_axis(best, order, axis=1), np.take_along_axis(best_ids, order, axis=1)
    return [set(row.tolist()) for row in best_ids]
