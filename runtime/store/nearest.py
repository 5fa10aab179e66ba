"""What an approximate index of vectors can do, and its file.

The index is disposable: it lies in the folder STORE.index, is made from the store and from nothing else, and
a file that is missing, damaged or of another store counts as absent.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError, storage_errors

__all__ = ["IndexHeader", "Nearest", "drop_index", "index_folder_of", "read_index", "write_index", "write_rows"]

_CHUNK_BYTES: Final = 1 << 20
_FORMAT: Final = 2

Loaded = TypeVar("Loaded")


class Nearest(Protocol):
    """Finds the stored vectors that are probably nearest. Letters: `N` vectors, `D` the length of one."""

    kind: str
    library: str
    scale: float

    def __len__(self) -> int:
        """Return how many vectors are in it, those of deleted rows included."""
        ...

    def add(self, ids: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        """Add vectors `table (N, D)` under `ids (N,)`, none of which is in it."""
        ...

    def search(self, query: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return the ids of about `k` vectors nearest to `query (D,)`; more `breadth` finds better ones."""
        ...

    def search_many(self, queries: NDArray[np.float32], k: int, breadth: int) -> NDArray[np.int64]:
        """Return what `search` does for each of `queries (N, D)`: `(N, k)`, -1 where there is nothing."""
        ...

    def save(self, path: Path) -> None:
        """Write it to a new file."""
        ...


class IndexHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the index's file and must be true of it.

    Attributes:
        store_id: of the store.
        model: number of the model version in the store.
        kind: `hnsw` or `ivfpq`.
        dim: D.
        watermark: the index knows every entry up to this id.
        scale: a vector times this, rounded, is what the index keeps; 1 where it keeps something else.
        library: `faiss` or `usearch`.
        breadth: the breadth of a search that found 99 % of the nearest ten in a trial.
        recall: what it found there, less its uncertainty; 0 where nobody noted it.
        oversampling: candidates for each answer, to be scored again; 0 for what is usual with this kind.
        narrow: a breadth that found them for the queries of the trial whose tenth best score was `near_score`
            or more; `breadth` where there were too few of them.
        near_score: a cosine.
        file: name of the index's file.
        bytes: its size.
        sha256: its hash, hex.
        rows_file: name of the file of what its rows answer with; empty where there is none.
        rows_bytes: its size.
        rows_sha256: its hash, hex.
    """

    store_id: str
    model: int
    kind: str
    dim: int
    watermark: int
    scale: float
    breadth: int
    library: str
    narrow: int
    near_score: float
    recall: float = 0.0
    oversampling: float = 0.0
    file: str = ""
    bytes: int = 0
    sha256: str = ""
    rows_file: str = ""
    rows_bytes: int = 0
    rows_sha256: str = ""
    format: int = _FORMAT


def index_folder_of(store: Path) -> Path:
    """Return the folder that holds the indexes of `store`."""
    return store.with_name(store.name + ".index")


def write_rows(store: Path, model: int, write: Callable[[Path], None]) -> Path:
    """Let `write` make the file of what the rows of an index answer with, and return its path.

    Raises:
        StorageFull: no space.
        StoreError: the folder cannot be written.
    """
    folder = index_folder_of(store)
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        path = folder / f"{model}-{secrets.token_hex(8)}.rows"
        write(path)
        _sync(path)
    return path


def write_index(store: Path, index: Nearest, header: IndexHeader, *, rows: Path | None) -> IndexHeader:
    """Write `index` so that a kill at any moment leaves the old one or the new one, and return its header.

    `rows`: the file of `write_rows` that goes with it.

    Raises:
        StorageFull: no space.
        StoreError: the folder cannot be written.
    """
    folder = index_folder_of(store)
    name = f"{header.model}-{secrets.token_hex(8)}.bin"
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        index.save(folder / name)
        _sync(folder / name)
        size, digest = _measured(folder / name)
        done = msgspec.structs.replace(header, file=name, bytes=size, sha256=digest)
        if rows is not None:
            size, digest = _measured(rows)
            done = msgspec.structs.replace(done, rows_file=rows.name, rows_bytes=size, rows_sha256=digest)
        draft = folder / f"{name}.json"
        draft.write_bytes(msgspec.json.encode(done))
        _sync(draft)
        draft.replace(folder / f"{header.model}.json")
        _sync(folder)
        _sweep(folder, header.model, keep={done.file, done.rows_file})
    return done


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        with storage_errors(folder):
            yield
    except (OSError, RuntimeError) as error:
        # RuntimeError is what the libraries raise when a write fails.
        raise StoreError(
            f"index {folder}",
            expected="a folder that can be written",
            found=str(error),
            remedy="Check its permissions and the disk. The store itself is not harmed and can be searched.",
        ) from error


def read_index(
    store: Path,
    *,
    store_id: str,
    model: int,
    dim: int,
    load: Callable[[Path, Path | None, IndexHeader], tuple[Nearest, Loaded]],
) -> tuple[Nearest, IndexHeader, Loaded] | None:
    """Return what `load` makes of the index of `model` and its rows, and the header; `None` when there is none
    that can be trusted.
    """
    folder = index_folder_of(store)
    try:
        header = msgspec.json.decode((folder / f"{model}.json").read_bytes(), type=IndexHeader)
        fits = (header.store_id, header.model, header.dim, header.format) == (store_id, model, dim, _FORMAT)
        file, rows = folder / os.path.basename(header.file), folder / os.path.basename(header.rows_file)
        # Hashed before it is parsed: the libraries' readers trust what they read.
        if not fits or not header.file or _measured(file) != (header.bytes, header.sha256):
            return None
        if header.rows_file and _measured(rows) != (header.rows_bytes, header.rows_sha256):
            return None
        index, loaded = load(file, rows if header.rows_file else None, header)
        return index, header, loaded
    except (OSError, msgspec.MsgspecError, RuntimeError):
        return None


def drop_index(store: Path, model: int | None = None) -> None:
    """Overwrite and remove the index files of `model`, or of all models.

    Raises:
        StoreError: one cannot be removed.
    """
    folder = index_folder_of(store)
    try:
        for path in sorted(folder.glob("*" if model is None else f"{model}[-.]*")):
            _wipe(path)
        if model is None:
            folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"index {folder}",
            expected="files that can be removed",
            found=str(error),
            remedy="Check the permissions and remove the folder: it holds nothing that is not in the store.",
        ) from error


def _wipe(path: Path) -> None:
    with path.open("r+b") as file:
        left = path.stat().st_size
        while left > 0:
            left -= file.write(bytes(min(left, _CHUNK_BYTES)))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _sweep(folder: Path, model: int, *, keep: Collection[str]) -> None:
    for path in folder.glob(f"{model}-*"):
        if path.name not in keep:
            _wipe(path)


def _measured(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
