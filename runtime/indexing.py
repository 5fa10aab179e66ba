"""A folder of pictures into a store: only what changed, a batch at a time, in spite of bad files."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError, StoreError
from pocketlens.core.preprocess import read_bytes
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.results import Description, Refusal
from pocketlens.runtime.store.rows import Known, Refused, Row
from pocketlens.runtime.store.store import Store

__all__ = ["SUFFIXES", "IndexProgress", "IndexReport", "index_folder"]

SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
"""Files with another suffix are not looked at. Case does not matter."""


class IndexProgress(msgspec.Struct, frozen=True):
    """How far an indexing run is; reported after each committed batch and for the unchanged files."""

    done: int
    total: int


class IndexReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an indexing run did.

    Attributes:
        added: pictures that are new or whose bytes changed.
        unchanged: pictures that were in the store already.
        removed: pictures whose files are gone.
        refused: files and folders that could not be indexed, sorted by path.
    """

    added: int
    unchanged: int
    removed: int
    refused: tuple[Refused, ...]


class _File(msgspec.Struct, frozen=True):
    path: str
    size_bytes: int
    mtime_ns: int


class _Batch(msgspec.Struct):
    """What one batch of files turned out to be. `described` are those that the lens looks at."""

    described: list[tuple[_File, bytes]] = msgspec.field(default_factory=list)
    touched: list[Known] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)


def index_folder(
    lens: Lens,
    store: Store,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    progress: Callable[[IndexProgress], None] | None = None,
) -> IndexReport:
    """Bring the store up to date with the pictures below `folder` and return what was done.

    A file counts as unchanged when its size and modification time are as before, or else its
    SHA-256. Each batch is one transaction, so a kill loses at most one batch and the next run goes on
    from there. Symbolic links are neither followed nor indexed. A bad file is remembered as refused
    and tried again at the next run.

    Args:
        lens: makes vectors, and captions where the bundle can.
        store: opened for this lens's model version.
        folder: searched with everything below it, in sorted order.
        batch_size: pictures per encoder call and per transaction.
        progress: called with how far it is.

    Raises:
        PictureError: `folder` is missing or not a folder.
        StoreError: the store cannot be written or is for another model version.
        StorageFull: no space; finished batches are kept.
        EngineError: a graph failed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    if store.model_version != lens.model_version:
        raise StoreError(
            f"store {store.path}",
            expected=f"a store for model version {lens.model_version}",
            found=f"one for {store.model_version}",
            remedy="Open the store with the version of the lens.",
        )
    root = _checked_folder(folder)
    known = store.known(root)
    files, closed = _walk(root)
    refused = list(closed)
    fresh = [file for file in files if not _same(known.get(file.path), file)]
    unchanged = done = len(files) - len(fresh)
    _report(progress, done, len(files))
    added = 0
    for first in range(0, len(fresh), batch_size):
        part = fresh[first : first + batch_size]
        batch = _Batch()
        rows = _describe(lens, part, known, batch)
        store.write(rows, touched=batch.touched, refused=batch.refused)
        added += len(rows)
        unchanged += len(batch.touched)
        refused += batch.refused
        done += len(part)
        _report(progress, done, len(files))
    present = {file.path for file in files}
    # What lies in a folder that cannot be read now may still be there: it stays.
    hidden = tuple(os.path.join(item.path, "") for item in closed)
    gone = [path for path in known if path not in present and not path.startswith(hidden)]
    below = os.path.join(root, "")
    stale = [r.path for r in store.refused() if r.path.startswith(below) and r.path not in present]
    store.write(removed=[*gone, *stale], refused=closed)
    return IndexReport(
        added=added,
        unchanged=unchanged,
        removed=len(gone),
        refused=tuple(sorted(refused, key=lambda item: item.path)),
    )


def _describe(lens: Lens, files: Sequence[_File], known: dict[str, Known], batch: _Batch) -> list[Row]:
    """Return the rows of those of `files` that are new or changed; the others go into `batch`."""
    contents = _contents(lens, files, known, batch)
    results: list[Description | NDArray[np.float32] | Refusal]
    if lens.captions_pictures:
        results = list(lens.descriptions(contents, batch_size=len(files)))
    else:
        results = list(lens.embed_images(contents, batch_size=len(files)))
    rows = []
    for (file, sha256), result in zip(batch.described, results, strict=True):
        if isinstance(result, Refusal):
            batch.refused.append(_refused(file.path, result.error))
            continue
        caption = result.caption if isinstance(result, Description) else None
        rows.append(
            Row(
                path=file.path,
                sha256=sha256,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                vector=result.embedding if isinstance(result, Description) else result,
                caption=None if caption is None else caption.text,
                confidence=None if caption is None else caption.confidence,
            )
        )
    return rows


def _contents(lens: Lens, files: Sequence[_File], known: dict[str, Known], batch: _Batch) -> Iterator[bytes]:
    """Yield the bytes of new and changed files, one at a time, and note in `batch` whose they are."""
    for file in files:
        try:
            data = read_bytes(file.path, max_bytes=lens.bundle.manifest.preprocess.max_bytes)
        except PictureError as error:
            batch.refused.append(_refused(file.path, error))
            continue
        sha256 = hashlib.sha256(data).digest()
        before = known.get(file.path)
        if before is not None and before.sha256 == sha256:
            batch.touched.append(
                Known(path=file.path, sha256=sha256, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns)
            )
            continue
        batch.described.append((file, sha256))
        yield data


def _checked_folder(folder: str | os.PathLike[str]) -> str:
    root = Path(folder)
    if not root.is_dir():
        raise PictureError(
            os.fspath(folder),
            kind="not_a_file" if root.exists() else "missing",
            expected="a folder with pictures",
            found="a file" if root.exists() else "nothing at that path",
            remedy="Check the path; single files are captioned with `pocketlens caption`.",
        )
    return os.fspath(root.resolve())


def _walk(root: str) -> tuple[list[_File], list[Refused]]:
    """Return the picture files below `root`, sorted, and the folders that could not be read."""
    files: list[_File] = []
    refused: list[Refused] = []

    def note(error: OSError) -> None:
        path = error.filename or root
        refused.append(_refused(path, _unreadable(path, error)))

    for folder, folders, names in os.walk(root, onerror=note):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.splitext(name)[1].lower() not in SUFFIXES or os.path.islink(path):
                continue
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            except OSError as error:
                refused.append(_refused(path, _unreadable(path, error)))
                continue
            files.append(_File(path, status.st_size, status.st_mtime_ns))
    return files, refused


def _unreadable(path: str, error: OSError) -> PictureError:
    return PictureError(
        path,
        kind="unreadable",
        expected="a folder or file that can be read",
        found=error.strerror or type(error).__name__,
        remedy="Check the permissions and the disk.",
    )


def _refused(path: str, error: PictureError) -> Refused:
    # The error may speak of bytes: what was read is named by the file.
    error.what = path
    return Refused(path=path, kind=error.kind, message=str(error))


def _same(before: Known | None, file: _File) -> bool:
    return before is not None and before.size_bytes == file.size_bytes and before.mtime_ns == file.mtime_ns


def _report(progress: Callable[[IndexProgress], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(IndexProgress(done, total))
