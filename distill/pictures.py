"""Pictures on disk as preprocessed pixels: one array, decoded once and mapped from then on, or decoded when asked for.

The array costs height x width x 3 bytes a picture on disk; decoding anew costs time at every step. Small sets are
cached, sets that are larger than the disk are not.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.data.sample import PictureFile, as_source

__all__ = ["DecodedPixels", "PixelSource", "batches", "load_pixels"]

_CHUNK = 256


def load_pixels(
    pictures: Sequence[PictureFile],
    spec: PreprocessSpec,
    *,
    cache: Path,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Return `(N, H, W, 3)` uint8 RGB, a read-only map of a file in the folder `cache`.

    The file's name is a hash of the spec and of every path with its size and change time, so a changed picture is
    decoded anew and an unchanged set never is. A half-written file is never taken for a whole one.

    Raises:
        DataError: a picture, or the tar that holds it, is not there.
        PictureError: a picture cannot be read.
        StorageFull: no space for the cache.
    """
    stamps = [_stamp(picture) for picture in pictures]
    key = hashlib.sha256(msgspec.json.encode((spec, stamps))).hexdigest()[:20]
    target = cache / f"pixels-{key}.npy"
    if not target.exists():
        with storage_errors(target):
            cache.mkdir(parents=True, exist_ok=True)
            partial_file = target.with_suffix(f".{os.getpid()}.partial")  # two processes may want the same set
            shape = (len(pictures), spec.height_px, spec.width_px, 3)
            out = np.lib.format.open_memmap(partial_file, mode="w+", dtype=np.uint8, shape=shape)
            done = 0
            for block in _decoded(pictures, spec, workers):
                out[done : done + len(block)] = block
                done += len(block)
                if progress is not None:
                    progress(done, len(pictures))
            out.flush()
            del out
            partial_file.rename(target)
    pixels: NDArray[np.uint8] = np.load(target, mmap_mode="r")
    return pixels


class DecodedPixels:
    """Pictures that are decoded each time they are asked for, by threads: Pillow leaves the interpreter lock alone.

    Args:
        pictures: where they are.
        spec: their preprocessing.
        workers: threads.
    """

    def __init__(self, pictures: Sequence[PictureFile], spec: PreprocessSpec, *, workers: int = 2) -> None:
        self._pictures, self._spec = pictures, spec
        self._pool = ThreadPoolExecutor(workers)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return `(B, H, W, 3)` uint8 for the pictures at `rows`.

        Raises:
            PictureError: a picture cannot be read.
        """
        asked = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        return np.stack(list(self._pool.map(self._decode, asked)))

    def _decode(self, row: int) -> NDArray[np.uint8]:
        return preprocess(as_source(self._pictures[row]), self._spec)


PixelSource = NDArray[np.uint8] | DecodedPixels
"""`(N, H, W, 3)` uint8, read by slices and by arrays of rows."""


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `range(count)` in order, `size` long but for the last."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _stamp(picture: PictureFile) -> tuple[str, int, int, int]:
    path, offset = (picture, 0) if isinstance(picture, Path) else (picture.path, picture.offset)
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            f"picture {path}",
            expected="the file that the data set lists",
            found=error.strerror or str(error),
            remedy="Bring it back, or prepare the data set again.",
        ) from error
    return str(path), offset, status.st_size, status.st_mtime_ns


def _decoded(pictures: Sequence[PictureFile], spec: PreprocessSpec, workers: int) -> Iterator[NDArray[np.uint8]]:
    chunks = [pictures[chunk] for chunk in batches(len(pictures), _CHUNK)]
    if workers <= 1 or len(chunks) == 1:
        yield from map(partial(_decode_chunk, spec=spec), chunks)
        return
    # spawn: a fork of a process that runs torch's threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_decode_chunk, spec=spec), chunks)


def _decode_chunk(pictures: Sequence[PictureFile], *, spec: PreprocessSpec) -> NDArray[np.uint8]:
    return np.stack([preprocess(as_source(picture), spec) for picture in pictures])
