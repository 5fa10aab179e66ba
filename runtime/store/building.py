"""An index from the store: which kind, built in blocks, and tried before it is used.

Letters: `N` vectors, `D` the length of one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import apsw
import msgspec

from pocketlens.runtime.store import compressed, graph
from pocketlens.runtime.store.answers import Answers
from pocketlens.runtime.store.breadth import Breadths, is_enough, measured_breadths, sampled
from pocketlens.runtime.store.byte_graph import ByteGraph
from pocketlens.runtime.store.compressed import Compressed
from pocketlens.runtime.store.entries import Vectors, stored_vectors
from pocketlens.runtime.store.graph import Graph, scale_for
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.nearest import IndexHeader, Nearest, read_index

__all__ = ["GRAPH_ROW_OVERHEAD_BYTES", "build_index", "extend_index", "index_kinds", "load_index", "memory_bytes"]

GRAPH_ROW_OVERHEAD_BYTES: Final = 180
"""Links and bookkeeping of one vector in a graph of connectivity 16, measured with usearch's `memory_usage`."""


def memory_bytes() -> int:
    """Return half of this machine's memory: what a store may hold by default."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 1 << 30


def index_kinds(rows: int, dim: int, budget_bytes: int) -> tuple[str, ...]:
    """Return which kinds of index `rows` vectors may have, the one to try first first.

    `ivfpq` needs FAISS. `hnsw` comes after it, where the trial of the lists fails, if a graph fits into `budget_bytes`;
    without FAISS it is the only one, and its file is mapped where it does not fit. Without usearch too there is none.
    """
    fits = rows * (dim + GRAPH_ROW_OVERHEAD_BYTES) <= budget_bytes
    if compressed.is_available():
        return ("ivfpq", "hnsw") if fits else ("ivfpq",)
    return ("hnsw",) if graph.is_available() else ()


def build_index(
    connection: apsw.Connection,
    model: Model,
    *,
    store_id: str,
    rows: int,
    kinds: Sequence[str],
    threads: int,
    answers: Answers | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Nearest, IndexHeader]:
    """Return an index of all `rows` entries of `model`. Runs inside the caller's read transaction.

    `kinds`: of these the first that its trial finds good enough, else the one that found most.
    `answers`: where the entries are read from; by default from the store itself.
    """
    source, tried = _Source(connection, model, rows, answers), list[tuple[Nearest, Breadths]]()
    for kind in kinds:
        empty = _empty(source, kind=kind, threads=threads)
        watermark = _fill(empty, source, above=0, progress=progress)
        found = measured_breadths(empty, source.blocks, rows)
        tried.append((empty, found))
        if is_enough(empty, found["breadth"], found["recall"]):
            break
    else:
        tried.sort(key=lambda one: one[1]["recall"])
    index, breadths = tried[-1]
    header = IndexHeader(
        store_id=store_id,
        model=model.id,
        kind=index.kind,
        dim=model.dim,
        watermark=watermark,
        scale=index.scale,
        library=index.library,
        **breadths,
    )
    return index, header


def extend_index(
    index: Nearest,
    header: IndexHeader,
    connection: apsw.Connection,
    model: Model,
    *,
    rows: int,
    kinds: Sequence[str],
    answers: Answers | None,
) -> IndexHeader | None:
    """Add the entries that `index` does not know and return its new header; see `build_index`.

    `None` when it should be built anew: it was made for far fewer entries, or these are unlike those of then.
    """
    if isinstance(index, Compressed) and index.is_outgrown(rows):
        return None
    source = _Source(connection, model, rows, answers)
    watermark = _fill(index, source, above=header.watermark, progress=None)
    breadths = measured_breadths(index, source.blocks, rows)
    was_enough = is_enough(index, header.breadth, header.recall)
    if index.kind != kinds[-1] and was_enough and not is_enough(index, breadths["breadth"], breadths["recall"]):
        return None
    return msgspec.structs.replace(header, watermark=max(watermark, header.watermark), **breadths)


def load_index(
    store: Path, model: Model, *, store_id: str, budget_bytes: int, threads: int
) -> tuple[Nearest, IndexHeader, Answers | None] | None:
    """Return the index that lies beside the store, or `None` when there is none that can be trusted."""

    def load(path: Path, rows: Path | None, header: IndexHeader) -> tuple[Nearest, Answers | None]:
        answers = None
        if rows is not None:
            answers = Answers.load(rows, model, populate=header.rows_bytes <= budget_bytes)
        if header.library == "faiss":
            if not compressed.is_available():
                raise OSError("FAISS is not installed")
            if header.kind == "ivfpq":
                return Compressed.load(path, threads=threads), answers
            if header.bytes > budget_bytes:
                raise OSError("more than fits into memory")
            return ByteGraph.load(path, dim=header.dim, scale=header.scale, threads=threads), answers
        if not graph.is_available():
            raise OSError("usearch is not installed")
        mapped = header.bytes > budget_bytes
        return Graph.load(path, dim=header.dim, scale=header.scale, mapped=mapped, threads=threads), answers

    return read_index(store, store_id=store_id, model=model.id, dim=model.dim, load=load)


class _Source:
    """Where the vectors of an index come from."""

    def __init__(self, connection: apsw.Connection, model: Model, rows: int, answers: Answers | None) -> None:
        self.model = model
        self.rows = rows
        self._connection = connection
        self._answers = answers

    def blocks(self, above: int = 0) -> Iterator[Vectors]:
        if self._answers is not None:
            return self._answers.blocks(above)
        return stored_vectors(self._connection, self.model, above=above)


def _empty(source: _Source, *, kind: str, threads: int) -> "ByteGraph | Graph | Compressed":
    dim = source.model.dim
    if kind == "ivfpq":
        sample = sampled(source.blocks(), Compressed.training_rows(source.rows), source.rows)
        return Compressed.trained(sample, rows=source.rows, threads=threads)
    scale = scale_for(next(source.blocks()).table)
    if compressed.is_available():
        return ByteGraph(dim, scale=scale, threads=threads)
    return Graph(dim, scale=scale, threads=threads)


def _fill(index: Nearest, source: _Source, *, above: int, progress: Callable[[int, int], None] | None) -> int:
    watermark = above
    for ids, table, _ in source.blocks(above):
        if len(ids):
            index.add(ids, table)
            watermark = max(watermark, int(ids[-1]))
        if progress is not None:
            progress(len(index), source.rows)
    return watermark
