"""The IVF-PQ index (Jégou, Douze and Schmid 2011), through FAISS: four bits for two dimensions.

Vectors lie in lists around centres that k-means found; a query is compared with the centres and then with what is in
the nearest lists. Codes of four bits are compared 32 at a time in the processor's registers (André, Kermarrec and
Le Scouarnec 2015), one list after the other in memory: that is several times as fast as a walk through a graph, where
the lists fit the vectors. Whether they do is tried, see `breadth`. Needs the extra `faiss`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.faiss_threads import faiss_threads

__all__ = ["Compressed", "is_available"]

_BITS: Final = 4
_SEED: Final = 20260101
_ROUNDS: Final = 10
_TRAINING_ROWS: Final = 39
"""Of one list: FAISS wants so many."""
_FEWEST_TRAINING_ROWS: Final = 39 * 256
_LISTS_PER_ROOT: Final = 4
_OUTGROWN: Final = 2.0
"""With this many times as many lists as it has, an index of so many rows would be made today: four times the rows."""


def is_available() -> bool:
    """Tell whether FAISS is installed."""
    return find_spec("faiss") is not None


class Compressed:
    """A `Nearest` of product-quantized vectors in inverted lists; its breadth is how many lists are searched."""

    kind = "ivfpq"
    library = "faiss"
    scale = 1.0

    def __init__(self, index: Any, *, threads: int = 0) -> None:
        import faiss

        self._index = index
        self._threads = threads
        self._pointer = faiss.swig_ptr
        self._breadth = -1
        self._scores, self._found = np.empty((0, 0), dtype=np.float32), np.empty((0, 0), dtype=np.int64)

    @classmethod
    def trained(cls, sample: NDArray[np.float32], *, rows: int, threads: int = 0) -> Self:
        """Return an empty index for about `rows` vectors like those of `sample (N, D)`."""
        import faiss

        library: Any = faiss  # its type hints know only some of its classes
        dim = sample.shape[1]
        lists = int(max(1, min(_LISTS_PER_ROOT * rows**0.5, len(sample) / _TRAINING_ROWS)))
        quantizer = library.IndexFlatIP(dim)
        parts = dim // 2 if dim % 2 == 0 else dim
        index = library.IndexIVFPQFastScan(quantizer, dim, lists, parts, _BITS, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = True
        quantizer.this.disown()
        index.cp.seed, index.cp.niter, index.cp.spherical = _SEED, _ROUNDS, True
        with faiss_threads(threads):
            index.train(np.ascontiguousarray(sample))
        return cls(index, threads=threads)

    @classmethod
    def load(cls, path: Path, *, threads: int = 0) -> Self:
        """Return the index in the file `path`."""
        import faiss

        return cls(faiss.read_index(str(path)), threads=threads)

    @staticmethod
    def training_rows(rows: int) -> int:
        """Return how many vectors `trained` wants to see for a store of `rows`."""
        return int(min(rows, max(_FEWEST_TRAINING_ROWS, _TRAINING_ROWS * _LISTS_PER_ROOT * rows**0.5)))

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return int(self._index.nlist)

    def is_outgrown(self, rows: int) -> bool:
        """Tell whether an index for `rows` vectors would have many more lists."""
        wanted: float = min(_LISTS_PER_ROOT * rows**0.5, rows / _TRAINING_ROWS)
        return wanted > _OUTGROWN * self.lists

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        """Add vectors; see `Nearest.add`."""
        with faiss_threads(self._threads):
            self._index.add_with_ids(np.ascontiguousarray(table), np.ascontiguousarray(ids))

    def search(self, query: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids, nearest first; see `Nearest.search`."""
        found: NDArray[np.int64] = self._search(query[None], k, breadth)[0]
        return found if found[-1] >= 0 else found[found >= 0]

    def search_many(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids `(N, k)`, -1 where there are none; see `Nearest.search_many`."""
        with faiss_threads(self._threads):
            return self._search(queries, k, breadth)

    def save(self, path: Path) -> None:
        """Write the index to `path`."""
        import faiss

        faiss.write_index(self._index, str(path))

    def _search(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        if breadth != self._breadth:
            self._index.nprobe = max(1, min(breadth, self.lists))
            self._breadth = breadth
        if self._found.shape != (len(queries), k):
            self._scores, self._found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if len(queries):
            asked = np.ascontiguousarray(queries, dtype=np.float32)
            # Without the checks of FAISS's own `search`, which this class makes unnecessary.
            self._index.search_c(
                len(asked), self._pointer(asked), k, self._pointer(self._scores), self._pointer(self._found)
            )
        return self._found.copy()
