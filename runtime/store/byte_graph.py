"""The HNSW index (Malkov and Yashunin 2018), through FAISS, with vectors of one byte a dimension.

The squared distance of two vectors of unit norm orders them as their inner product does, and it does not change when
both are moved: so the numbers are stored as unsigned bytes, moved by 128, whose distances FAISS computes with whole
numbers. What rounding puts in the wrong order is put right by scoring the candidates again with the stored vectors.
"""

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.faiss_threads import faiss_threads

__all__ = ["ByteGraph", "is_available"]

_MIDDLE: Final = 128.5
"""Moves a number into [0, 255]; the half makes FAISS's truncation a rounding."""
_HIGHEST: Final = 255.0
_CONNECTIVITY: Final = 16
_EXPANSION_ADD: Final = 128
"""With 40, FAISS's default, a graph of a million rows was made three times as fast and found 0.92 at any breadth."""
_CHUNK_ROWS: Final = 4096
_HUGE_PAGE_BYTES: Final = 2 << 20
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25


def is_available() -> bool:
    """Tell whether FAISS is installed."""
    return find_spec("faiss") is not None


class ByteGraph:
    """A `Nearest` that holds everything in memory; its breadth is how many candidates are kept."""

    kind = "hnsw"
    library = "faiss"

    def __init__(self, dim: int, *, scale: float, threads: int = 0, index: Any = None) -> None:
        import faiss

        library: Any = faiss  # its type hints know only some of its classes
        self.scale = scale
        self._threads = threads
        if index is None:
            index = library.IndexHNSWSQ(dim, library.ScalarQuantizer.QT_8bit_direct, _CONNECTIVITY, faiss.METRIC_L2)
            index.hnsw.efConstruction = _EXPANSION_ADD
            # There is nothing to learn about bytes; FAISS wants to be told.
            index.train(np.zeros((1, dim), dtype=np.float32))
            index = faiss.IndexIDMap(index)
        self._index = index
        self._graph: Any = faiss.downcast_index(index.index)
        self._parameters = library.SearchParametersHNSW()
        self._pointer = faiss.swig_ptr
        self._ids = np.empty(0, dtype=np.int64)
        self._scores, self._found = np.empty((0, 0), dtype=np.float32), np.empty((0, 0), dtype=np.int64)
        self._settled = False

    @classmethod
    def load(cls, path: Path, *, dim: int, scale: float, threads: int = 0) -> Self:
        """Return the graph in the file `path`."""
        import faiss

        index = faiss.read_index(str(path))
        if not isinstance(index, faiss.IndexIDMap) or index.d != dim:
            raise OSError("not a graph of this store")
        return cls(dim, scale=scale, threads=threads, index=index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        """Add vectors; see `Nearest.add`."""
        with faiss_threads(self._threads):
            for first in range(0, len(ids), _CHUNK_ROWS):
                part = slice(first, first + _CHUNK_ROWS)
                self._index.add_with_ids(self._bytes(table[part]), np.ascontiguousarray(ids[part]))
        self._settled = False

    def search(self, query: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids, nearest first; see `Nearest.search`."""
        found = self._search(query[None], k, breadth)[0]
        return np.asarray(found[found >= 0])

    def search_many(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids `(N, k)`, -1 where there are none; see `Nearest.search_many`."""
        with faiss_threads(self._threads):
            return self._search(queries, k, breadth)

    def save(self, path: Path) -> None:
        """Write the graph to `path`."""
        import faiss

        faiss.write_index(self._index, str(path))

    def _search(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        if not self._settled:
            self._settle()
        if not len(self._ids) or not len(queries):
            return np.full((len(queries), k), -1, dtype=np.int64)
        self._parameters.efSearch = max(breadth, k)
        coded = self._bytes(queries)
        if self._found.shape != (len(queries), k):
            self._scores, self._found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        # Without the checks of FAISS's own `search`, which this class makes unnecessary.
        self._graph.search_c(
            len(coded),
            self._pointer(coded),
            k,
            self._pointer(self._scores),
            self._pointer(self._found),
            self._parameters,
        )
        found: NDArray[np.int64] = self._ids[self._found]
        if self._found.min() < 0:
            found[self._found < 0] = -1
        return found

    def _settle(self) -> None:
        """Take the ids out of FAISS, where one look costs more than a search, and ask for large pages."""
        import faiss

        self._ids = faiss.vector_to_array(self._index.id_map)
        if self._graph.ntotal:
            storage: Any = faiss.downcast_index(self._graph.storage)
            codes = storage.codes
            _use_huge_pages(faiss.rev_swig_ptr(codes.data(), codes.size()))
            links = self._graph.hnsw.neighbors
            _use_huge_pages(faiss.rev_swig_ptr(links.data(), links.size()))
        self._settled = True

    def _bytes(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        moved: NDArray[np.float32] = vectors * np.float32(self.scale)
        moved += np.float32(_MIDDLE)
        np.maximum(moved, np.float32(0), out=moved)
        np.minimum(moved, np.float32(_HIGHEST), out=moved)
        return moved


def _use_huge_pages(memory: NDArray[Any]) -> None:
    """Ask Linux to back `memory` with pages of 2 MB; a search jumps about in it, and with 4 KB pages each jump is a
    miss of the address cache too: measured in docs/store.md. It is advice, and nothing depends on it.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-memory.ctypes.data // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    end = (memory.ctypes.data + memory.nbytes) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    if end > start:
        advise = ctypes.CDLL(None).madvise
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
