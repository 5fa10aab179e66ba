"""The hashes of all pictures of a data set, a chunk at a time, kept on disk."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import storage_errors
from pocketlens.distill.data.fingerprint import LOOK_BYTES, Fingerprint, fingerprints
from pocketlens.distill.data.record import Record
from pocketlens.distill.data.sample import PictureFile

__all__ = ["Hashes", "hash_pictures"]

_CHUNK: Final = 1024


class Hashes(NamedTuple):
    """Hashes of N pictures; rows of pictures that cannot be read are zeros.

    Attributes:
        digests: `(N, 32)` uint8, SHA-256 of the file.
        looks: `(N, 16)` uint8, see `pocketlens.distill.data.fingerprint`.
        faults: N kinds of `PictureError`, empty for a good picture.
        details: N messages.
    """

    digests: NDArray[np.uint8]
    looks: NDArray[np.uint8]
    faults: NDArray[np.str_]
    details: NDArray[np.str_]


def hash_pictures(
    records: Sequence[Record],
    folder: Path,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Hashes:
    """Return the hashes of the records' pictures, taking finished chunks from `folder`.

    A chunk's file is named by its pictures' paths, sizes and change times, so a changed picture is hashed anew.

    Raises:
        StorageFull: no space left; finished chunks are kept.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    parts = [_no_pictures()]
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
    try:
        done = 0
        for start in range(0, len(records), _CHUNK):
            chunk = [record.picture() for record in records[start : start + _CHUNK]]
            parts.append(_chunk(chunk, folder, pool, workers))
            done += len(chunk)
            if progress is not None:
                progress(done, len(records))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return Hashes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _chunk(pictures: list[PictureFile], folder: Path, pool: ProcessPoolExecutor | None, workers: int) -> Hashes:
    path = folder / f"{_key(pictures)}.npz"
    if path.exists():
        with np.load(path) as arrays:
            return Hashes(*(arrays[name] for name in Hashes._fields))
    shares = [pictures[i::workers] for i in range(workers)] if pool is not None else [pictures]
    answers = map(fingerprints, shares) if pool is None else pool.map(fingerprints, shares)
    found = [Fingerprint("", b"")] * len(pictures)
    for i, share in enumerate(answers):
        found[i :: len(shares)] = share
    hashes = Hashes(
        np.array([list(bytes.fromhex(f.sha256) or bytes(32)) for f in found], dtype=np.uint8).reshape(-1, 32),
        np.array([list(f.look or bytes(LOOK_BYTES)) for f in found], dtype=np.uint8).reshape(-1, LOOK_BYTES),
        np.array([f.fault for f in found], dtype=np.str_),
        np.array([f.detail[:300] for f in found], dtype=np.str_),
    )
    partial = path.with_suffix(".partial")
    with storage_errors(path):
        with partial.open("wb") as file:
            np.savez(file, **hashes._asdict())
        partial.rename(path)
    return hashes


def _key(pictures: Sequence[PictureFile]) -> str:
    return hashlib.sha256(msgspec.json.encode(list(_stamps(pictures)))).hexdigest()[:20]


def _stamps(pictures: Sequence[PictureFile]) -> Iterator[tuple[str, int, int, int]]:
    for picture in pictures:
        path, offset = (picture, 0) if isinstance(picture, Path) else (picture.path, picture.offset)
        try:
            status = path.stat()
        except OSError:
            yield str(path), offset, -1, -1
        else:
            yield str(path), offset, status.st_size, status.st_mtime_ns


def _no_pictures() -> Hashes:
    return Hashes(
        np.empty((0, 32), np.uint8), np.empty((0, LOOK_BYTES), np.uint8), np.empty(0, np.str_), np.empty(0, np.str_)
    )
