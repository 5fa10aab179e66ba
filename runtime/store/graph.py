"""The HNSW index (Malkov and Yashunin 2018), through usearch, with vectors of one byte a dimension.

int8 and the inner product, because that was measured 1.8 × as fast as float32 at the same recall; what
rounding puts in the wrong order is put right by scoring the candidates again with the stored vectors.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from usearch.index import Index

__all__ = ["Graph", "is_available", "scale_for"]

_LEVELS: Final = 127
_CONNECTIVITY: Final = 16
_EXPANSION_ADD: Final = 128
_CHUNK_ROWS: Final = 4096
_SAMPLE_SHARE: Final = 0.9999


def scale_for(sample: NDArray[np.float32]) -> float:
    """Return the factor that brings all but one in ten thousand of the numbers in `sample (N, D)` within ±127."""
    largest = float(np.quantile(np.abs(sample), _SAMPLE_SHARE)) if sample.size else 1.0
    return _LEVELS / largest if largest > 0 else 1.0


def is_available() -> bool:
    """Tell whether usearch is installed."""
    return find_spec("usearch") is not None


class Graph:
    """A `Nearest` that holds everything in memory, or maps its file."""

    kind = "hnsw"
    library = "usearch"

    def __init__(self, dim: int, *, scale: float, threads: int = 0, index: "Index | None" = None) -> None:
        self.scale = scale
        self._threads = threads
        self._index = index if index is not None else self._empty(dim)

    @staticmethod
    def _empty(dim: int) -> "Index":
        # In this order: onnxruntime crashes the process when it is loaded after usearch, whose library shows its
        # own copy of the C++ runtime to everybody (seen with usearch 2.26.6 and onnxruntime 1.31.1 on Linux).
        import_module("onnxruntime")
        from usearch.index import Index

        return Index(
            ndim=dim,
            metric="ip",
            dtype="i8",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
        )

    @classmethod
    def load(cls, path: Path, *, dim: int, scale: float, mapped: bool, threads: int = 0) -> Self:
        """Return the graph in the file `path`; `mapped`: leave it on the disk and never add to it."""
        index = cls._empty(dim)
        if mapped:
            index.view(path)
        else:
            index.load(path)
        return cls(dim, scale=scale, threads=threads, index=index)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, ids: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        """Add vectors; see `Nearest.add`."""
        for first in range(0, len(ids), _CHUNK_ROWS):
            part = slice(first, first + _CHUNK_ROWS)
            self._index.add(ids[part].astype(np.uint64), self._bytes(table[part]), threads=self._threads)

    def search(self, query: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids, nearest first; see `Nearest.search`."""
        if not len(self._index):
            return np.empty(0, dtype=np.int64)
        self._index.expansion_search = max(breadth, k)  # type: ignore[misc]  # its setter is overlooked
        found = self._index.search(self._bytes(query), k, threads=1).keys
        return np.asarray(found, dtype=np.int64)

    def search_many(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids `(N, k)`, -1 where there are none; see `Nearest.search_many`."""
        found = np.full((len(queries), k), -1, dtype=np.int64)
        if len(self._index) and len(queries):
            self._index.expansion_search = max(breadth, k)  # type: ignore[misc]  # its setter is overlooked
            # One query and several come back in different shapes.
            matches: Any = self._index.search(self._bytes(queries), k, threads=self._threads)
            keys = np.atleast_2d(matches.keys)
            counts = getattr(matches, "counts", np.array([keys.shape[1]]))
            for row, count in enumerate(counts.tolist()):
                found[row, :count] = keys[row, :count]
        return found

    def save(self, path: Path) -> None:
        """Write the graph to `path`."""
        self._index.save(path)

    def _bytes(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        return np.asarray(np.clip(np.rint(vectors * self.scale), -_LEVELS, _LEVELS), dtype=np.int8)
