"""How many threads FAISS uses: a setting of the whole process, taken back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["faiss_threads"]


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Let FAISS work with `count` threads inside the block, 0 for what it does anyway."""
    import faiss

    before = faiss.omp_get_max_threads()
    if count:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
