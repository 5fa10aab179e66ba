"""Groups of pictures that are the same, or nearly."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["exact_groups", "near_groups", "similar_groups"]

_BANDS: Final = 8  # of 16 bits: hashes that differ in at most 7 bits agree in one band at least
_BLOCK: Final = 1024


class _Groups:
    """Disjoint sets of rows; the smallest row of a set stands for it."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def head(self, row: int) -> int:
        while (up := int(self._parent[row])) != row:
            self._parent[row] = self._parent[up]
            row = up
        return row

    def join(self, a: int, b: int) -> None:
        first, second = sorted((self.head(a), self.head(b)))
        self._parent[second] = first

    def heads(self) -> NDArray[np.int64]:
        return np.array([self.head(row) for row in range(len(self._parent))], dtype=np.int64)


def exact_groups(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each row of `digests (N, bytes)` the first row that is equal, `(N,)`."""
    whole = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def near_groups(looks: NDArray[np.uint8], *, distance: int) -> NDArray[np.int64]:
    """Return for each row the first row of its group, `(N,)`, rows joined where their hashes are close.

    Args:
        looks: `(N, 16)`, 128-bit hashes.
        distance: the largest number of differing bits, 0 to 7.
    """
    groups = _Groups(len(looks))
    bands = np.ascontiguousarray(looks).view(np.uint16)  # (N, 8)
    for band in range(_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        borders = np.flatnonzero(np.diff(bands[order, band])) + 1
        for rows in np.split(order, borders):
            for a, b in _close_pairs(looks, rows, distance):
                groups.join(a, b)
    return groups.heads()


def similar_groups(vectors: NDArray[np.floating], *, cosine: float) -> NDArray[np.int64]:
    """Return for each row the first row of its group, `(N,)`, rows joined where their cosine is at least `cosine`.

    Every pair is compared, a block at a time: N² D multiplications.

    Args:
        vectors: `(N, D)` of unit norm.
        cosine: in (0, 1].
    """
    groups = _Groups(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float32)
        for other in range(start, len(vectors), _BLOCK):
            scores = block @ vectors[other : other + _BLOCK].astype(np.float32).T
            for a, b in np.argwhere(scores >= cosine).tolist():
                if start + a < other + b:
                    groups.join(start + a, other + b)
    return groups.heads()


def _close_pairs(looks: NDArray[np.uint8], rows: NDArray[np.int64], distance: int) -> Iterator[tuple[int, int]]:
    if len(rows) < 2:
        return
    # Of many pictures with one look (a flat colour), the distinct hashes are compared, not all pairs.
    unique, inverse = np.unique(looks[rows], axis=0, return_inverse=True)
    inverse = inverse.ravel()
    heads = np.full(len(unique), -1, dtype=np.int64)
    for row, kind in zip(rows.tolist(), inverse.tolist(), strict=True):
        if heads[kind] < 0:
            heads[kind] = row
        else:
            yield int(heads[kind]), row
    block = max(1, _BLOCK**2 // len(unique))  # 16 MiB of differences at a time
    for start in range(0, len(unique), block):
        differing = np.bitwise_count(unique[start : start + block, None] ^ unique[None]).sum(axis=2)
        for a, b in np.argwhere(differing <= distance).tolist():
            if start + a < b:
                yield int(heads[start + a]), int(heads[b])
