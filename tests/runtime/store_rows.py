"""Rows for the store's tests: small vectors from seeds, and everything that a test may want to differ."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime import Store
from pocketlens.runtime.store import Row

DIM = 16


def vectors(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    """Return `(count, dim)` of unit norm."""
    table = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return np.asarray(table / np.linalg.norm(table, axis=1, keepdims=True), dtype=np.float32)


def row(path: str, vector: NDArray[np.float32], content: str = "", **columns: object) -> Row:
    """Return a row of a file whose bytes are `content`, or its path."""
    given: dict[str, object] = {"caption": f"about {path}", "confidence": 0.5, **columns}
    sha256 = hashlib.sha256((content or path).encode()).digest()
    return Row(path=path, sha256=sha256, size_bytes=5, mtime_ns=7, vector=vector, **given)  # type: ignore[arg-type]


def opened(path: Path, version: str = "v1", dim: int = DIM, **options: object) -> Store:
    """Return the store at `path`."""
    return Store.open(path, model_version=version, dim=dim, **options)  # type: ignore[arg-type]
