"""Vectors as bytes, and the checksum that each row carries.

Letters: `N` vectors, `D` the length of one.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.rows import Dtype

__all__ = ["bits_of", "blob_bytes", "checksum", "decode", "decoded", "encode"]

_FLOAT: Final = np.dtype("<f4")
_HALF: Final = np.dtype("<f2")
_LEVELS: Final = 127


def encode(vectors: NDArray[np.float32], dtype: Dtype) -> list[bytes]:
    """Return each row of `vectors (N, D)` as bytes.

    `fp32` and `fp16` are little-endian. `int8` and `binary` are a float32 scale and D signed bytes: the
    vector is scale times bytes, and the scale is the largest magnitude divided by 127.
    """
    if dtype == "fp32":
        return [row.tobytes() for row in vectors.astype(_FLOAT)]
    if dtype == "fp16":
        return [row.tobytes() for row in vectors.astype(_HALF)]
    scales = np.abs(vectors).max(axis=1) / _LEVELS
    safe = np.where(scales > 0, scales, 1).astype(_FLOAT)
    codes = np.rint(vectors / safe[:, None]).astype(np.int8)
    return [scale.tobytes() + row.tobytes() for scale, row in zip(safe, codes, strict=True)]


def decode(blobs: Sequence[bytes], dtype: Dtype, dim: int) -> NDArray[np.float32]:
    """Return the vectors `(N, D)` float32 that `encode` was given, as exactly as `dtype` keeps them.

    Every blob must have `blob_bytes(dtype, dim)` bytes.
    """
    if not blobs:
        return np.empty((0, dim), dtype=np.float32)
    return decoded(np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), -1), dtype, dim)


def decoded(table: NDArray[np.uint8], dtype: Dtype, dim: int) -> NDArray[np.float32]:
    """Return the vectors `(N, D)` float32 whose bytes are the rows of `table (N, blob_bytes(dtype, dim))`."""
    if dtype == "fp32":
        return table.view(_FLOAT)
    if dtype == "fp16":
        return table.view(_HALF).astype(np.float32)
    vectors = table.view(np.int8)[:, _FLOAT.itemsize :].astype(np.float32)
    # The scale cancels out: the vectors that came in had unit norm, and rounding changed it a little.
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


def blob_bytes(dtype: Dtype, dim: int) -> int:
    """Return how long `encode` makes a vector of `dim` numbers."""
    return {"fp32": 4 * dim, "fp16": 2 * dim}.get(dtype, _FLOAT.itemsize + dim)


def bits_of(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the signs of `vectors (N, D)` as `(N, ceil(D / 64))`, zeros behind the last one."""
    packed = np.packbits(vectors > 0, axis=1)
    padded = np.zeros((len(vectors), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def checksum(*columns: object, vector: bytes = b"") -> bytes:
    """Return 8 bytes that change when a column or the vector does: BLAKE2b of their `repr` and bytes.

    It finds damage, not malice: whoever can write the file can write the checksum too.
    """
    digest = hashlib.blake2b(repr(columns).encode("utf-8", "surrogatepass"), digest_size=8)
    digest.update(vector)
    return digest.digest()
