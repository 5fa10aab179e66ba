"""A folder of pictures into a store: only what changed, a batch at a time, in spite of bad files."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError, StoreError
from pocketlens.core.preprocess import read_bytes
from pocketlens.runtime.folder import SourceFile, checked_folder, refused_file, unreadable, walk
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.results import Description, Refusal
from pocketlens.runtime.store.rows import Known, Refused, Row
from pocketlens.runtime.store.store import Store
from pocketlens.runtime.taken import taken_at

__all__ = ["SUFFIXES", "IndexProgress", "IndexReport", "RowReader", "index_folder", "lens_rows"]

SUFFIXES: Final = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Files with another suffix are not looked at. Case does not matter."""
_CHUNK_BYTES: Final = 1 << 20


class RowReader(Protocol):
    """Makes rows of files that are no pictures, such as videos.

    Attributes:
        suffixes: which files, lower case, with the dot.
    """

    suffixes: frozenset[str]

    def rows(self, file: SourceFile, sha256: bytes) -> Iterable[Row]:
        """Yield the rows of `file`, all with its path and `sha256`, told apart by `at_ms`.

        Raises:
            PictureError: the file is refused.
        """
        ...


class IndexProgress(msgspec.Struct, frozen=True):
    """How far an indexing run is; reported after each committed batch and for the unchanged files."""

    done: int
    total: int


class IndexReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an indexing run did.

    Attributes:
        added: files that are new or whose bytes changed.
        unchanged: files that were in the store already.
        removed: rows' files that are gone.
        refused: files and folders that could not be indexed, sorted by path.
        copied: of `added`, those whose bytes the store knew under another name (moved or copied): not
            looked at again.
    """

    added: int
    unchanged: int
    removed: int
    refused: tuple[Refused, ...]
    copied: int = 0


class _Batch(msgspec.Struct):
    """What one batch of files turned out to be. `described` are those that the lens looks at."""

    described: list[tuple[SourceFile, bytes, int | None]] = msgspec.field(default_factory=list)
    copied: list[Row] = msgspec.field(default_factory=list)
    touched: list[Known] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)


class _Run(msgspec.Struct):
    """What one run needs to know everywhere."""

    lens: Lens
    store: Store
    tenant: str
    album: str | None
    known: dict[str, Known]


def index_folder(
    lens: Lens,
    store: Store,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    tenant: str = "",
    album: str | None = None,
    readers: Sequence[RowReader] = (),
    only: Collection[str] | None = None,
    progress: Callable[[IndexProgress], None] | None = None,
) -> IndexReport:
    """Bring the store up to date with the pictures below `folder` and return what was done.

    A file counts as unchanged when its size and modification time are as before, or else its
    SHA-256: a run over unchanged files costs a stat for each. A file whose bytes the store has under another
    name gets the same rows without being looked at. Each batch is one transaction, so a kill loses at most one
    batch and the next run goes on from there. Symbolic links are neither followed nor indexed. A bad file is
    remembered as refused and tried again at the next run. At the end the store's index is brought up to date.

    Args:
        lens: makes vectors, and captions where the bundle can.
        store: opened for this lens's model version.
        folder: searched with everything below it, in sorted order.
        batch_size: pictures per encoder call and per transaction.
        tenant: whose files they are.
        album: the album of new and changed files.
        readers: for files that are no pictures.
        only: look at nothing but these paths below `folder`, files or folders, there or gone.
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
    root = checked_folder(folder)
    places = [root] if only is None else _below(root, only)
    suffixes = SUFFIXES.union(*(reader.suffixes for reader in readers))
    files, closed = walk(places, suffixes)
    known: dict[str, Known] = {}
    for place in places:
        known |= store.known(place, tenant=tenant, itself=True)
    run = _Run(lens, store, tenant, album, known)
    fresh = [file for file in files if not _same(known.get(file.path), file)]
    unchanged = done = len(files) - len(fresh)
    _report(progress, done, len(files))
    added = copied = 0
    refused = list(closed)
    for part, reader in _parts(fresh, batch_size, readers):
        batch = _Batch()
        rows = _described(run, part, batch) if reader is None else _read(run, part[0], reader, batch)
        store.write([*rows, *batch.copied], touched=batch.touched, refused=batch.refused, tenant=tenant)
        added += len({row.path for row in (*rows, *batch.copied)})
        copied += len({row.path for row in batch.copied})
        unchanged += len(batch.touched)
        refused += batch.refused
        done += len(part)
        _report(progress, done, len(files))
    present = {file.path for file in files}
    gone = [path for path in known if path not in present and _is_gone(path, suffixes, closed)]
    stale = [item.path for item in store.refused(tenant=tenant) if item.path not in present]
    stale = [path for path in stale if any(_is_in(path, place) for place in places)]
    # A folder that could not be read is no file; what it holds is looked at again.
    stale = [path for path in stale if _is_gone(path, suffixes, closed) or not os.path.isfile(path)]
    if gone or stale or closed:
        store.write(removed=[*gone, *stale], refused=closed, tenant=tenant)
    store.prepare()
    return IndexReport(
        added=added,
        unchanged=unchanged,
        removed=len(gone),
        refused=tuple(sorted(refused, key=lambda item: item.path)),
        copied=copied,
    )


def lens_rows(
    lens: Lens, files: Sequence[tuple[SourceFile, bytes, int | None]], contents: Iterable[bytes], *, batch_size: int
) -> Iterator[Row | Refused]:
    """Yield what `lens` says of `contents`, the bytes of `files` (with SHA-256 and time taken), in order.

    `files` may grow while `contents` is read.
    """
    results: list[Description | NDArray[np.float32] | Refusal]
    if lens.captions_pictures:
        results = list(lens.descriptions(contents, batch_size=batch_size))
    else:
        results = list(lens.embed_images(contents, batch_size=batch_size))
    for (file, sha256, taken), result in zip(files, results, strict=True):
        if isinstance(result, Refusal):
            yield refused_file(file.path, result.error)
            continue
        caption = result.caption if isinstance(result, Description) else None
        yield Row(
            path=file.path,
            sha256=sha256,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            vector=result.embedding if isinstance(result, Description) else result,
            caption=None if caption is None else caption.text,
            confidence=None if caption is None else caption.confidence,
            taken_at=taken,
        )


def _described(run: _Run, files: Sequence[SourceFile], batch: _Batch) -> list[Row]:
    """Return the rows of those of `files` that are new or changed; the others go into `batch`."""
    rows = []
    contents = _contents(run, files, batch)
    for item in lens_rows(run.lens, batch.described, contents, batch_size=len(files)):
        if isinstance(item, Refused):
            batch.refused.append(item)
        else:
            rows.append(msgspec.structs.replace(item, tenant=run.tenant, album=run.album))
    return rows


def _contents(run: _Run, files: Sequence[SourceFile], batch: _Batch) -> Iterator[bytes]:
    """Yield the bytes of new and changed files, one at a time, and note in `batch` whose they are."""
    for file in files:
        try:
            data = read_bytes(file.path, max_bytes=run.lens.bundle.manifest.preprocess.max_bytes)
        except PictureError as error:
            batch.refused.append(refused_file(file.path, error))
            continue
        sha256 = hashlib.sha256(data).digest()
        if not _is_known(run, file, sha256, batch):
            batch.described.append((file, sha256, taken_at(data)))
            yield data


def _read(run: _Run, file: SourceFile, reader: RowReader, batch: _Batch) -> list[Row]:
    """Return the rows that `reader` makes of `file`, unless the store has them."""
    try:
        sha256 = _file_sha256(file.path)
        if _is_known(run, file, sha256, batch):
            return []
        rows = list(reader.rows(file, sha256))
    except PictureError as error:
        batch.refused.append(refused_file(file.path, error))
        return []
    return [msgspec.structs.replace(row, tenant=run.tenant, album=run.album) for row in rows]


def _is_known(run: _Run, file: SourceFile, sha256: bytes, batch: _Batch) -> bool:
    """Tell whether the store has rows of these bytes, and note in `batch` what is to be written then."""
    before = run.known.get(file.path)
    if before is not None and before.sha256 == sha256:
        batch.touched.append(Known(path=file.path, sha256=sha256, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns))
        return True
    same = run.store.copies([sha256], tenant=run.tenant).get(sha256, [])
    batch.copied += [
        msgspec.structs.replace(
            row,
            path=file.path,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            album=run.album or row.album,
            version=0,
        )
        for row in same
    ]
    return bool(same)


def _file_sha256(path: str) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.digest()


def _parts(
    files: Sequence[SourceFile], batch_size: int, readers: Sequence[RowReader]
) -> Iterator[tuple[list[SourceFile], RowReader | None]]:
    """Yield batches of pictures, then what has a reader of its own, one by one."""
    owners = {suffix: reader for reader in readers for suffix in reader.suffixes}
    pictures = [file for file in files if file.suffix not in owners]
    for first in range(0, len(pictures), batch_size):
        yield pictures[first : first + batch_size], None
    for file in files:
        if file.suffix in owners:
            yield [file], owners[file.suffix]


def _below(root: str, paths: Collection[str]) -> list[str]:
    """Return those of `paths` that are `root` or below it, without those below another one."""
    inside = sorted({os.path.normpath(path) for path in paths if _is_in(os.path.normpath(path), root)})
    kept: list[str] = []
    for path in inside:
        if not any(_is_in(path, other) for other in kept):
            kept.append(path)
    return kept


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(os.path.join(place, ""))


def _is_gone(path: str, suffixes: frozenset[str], closed: Sequence[Refused]) -> bool:
    # What lies in a folder that cannot be read now may still be there, and what another reader made rows of
    # is not looked at in this run: both stay.
    if any(_is_in(path, item.path) for item in closed):
        return False
    return os.path.splitext(path)[1].lower() in suffixes or not os.path.lexists(path)


def _same(before: Known | None, file: SourceFile) -> bool:
    return before is not None and before.size_bytes == file.size_bytes and before.mtime_ns == file.mtime_ns


def _report(progress: Callable[[IndexProgress], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(IndexProgress(done, total))
