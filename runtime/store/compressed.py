"""The IVF-PQ index (Jégou, Douze and Schmid 2011), through FAISS: about one byte for eight dimensions.

For stores whose graph would not fit into memory. Needs the extra `faiss`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Compressed", "is_available"]

_BITS: Final = 8
_SEED: Final = 20260101


def is_available() -> bool:
    """Tell whether FAISS is installed."""
    return find_spec("faiss") is not None


class Compressed:
    """A `Nearest` of product-quantized vectors in inverted lists; its breadth is how many lists are searched."""

    kind = "ivfpq"
    library = "faiss"
    scale = 1.0

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def trained(cls, sample: NDArray[np.float32], *, rows: int) -> Self:
        """Return an empty index for about `rows` vectors like those of `sample (N, D)`."""
        import faiss

        dim = sample.shape[1]
        # FAISS wants some 39 training vectors a list, and 4 √rows lists for a store of `rows`.
        lists = int(max(1, min(4 * rows**0.5, len(sample) / 39)))
        quantizer: Any = faiss.IndexFlatIP(dim)
        parts = next(parts for parts in (dim // 4, dim // 8, dim // 2, dim, 1) if parts and dim % parts == 0)
        index = faiss.IndexIVFPQ(quantizer, dim, lists, parts, _BITS, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = True
        quantizer.this.disown()
        index.cp.seed = _SEED
        index.train(np.ascontiguousarray(sample))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the index in the file `path`."""
        import faiss

        return cls(faiss.read_index(str(path)))

    @staticmethod
    def training_rows(rows: int) -> int:
        """Return how many vectors `trained` wants to see for a store of `rows`."""
        return int(min(rows, max(39 * 256, 39 * 4 * rows**0.5)))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        """Add vectors; see `Nearest.add`."""
        self._index.add_with_ids(np.ascontiguousarray(table), np.ascontiguousarray(ids))

    def search(self, query: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids, nearest first; see `Nearest.search`."""
        self._index.nprobe = max(1, min(breadth, int(self._index.nlist)))
        _, found = self._index.search(np.ascontiguousarray(query[None]), k)
        ids: Sequence[int] = found[0]
        return np.asarray([index for index in ids if index >= 0], dtype=np.int64)

    def search_many(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return ids `(N, k)`, -1 where there are none; see `Nearest.search_many`."""
        self._index.nprobe = max(1, min(breadth, int(self._index.nlist)))
        return np.asarray(self._index.search(np.ascontiguousarray(queries), k)[1], dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the index to `path`."""
        import faiss

        faiss.write_index(self._index, str(path))
