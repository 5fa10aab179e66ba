"""Every picture of a source into one file of vectors; a run that was cut off goes on where it was.

While it runs there are two files: `OUT.rows`, the rows, and `OUT.files.jsonl`, the sidecar. Rows are
written before the lines that speak of them, so what the sidecar says is there. The next run drops rows
without a line and lines without an intact row, and goes on behind the last one that is left: nothing
lost, nothing doubled. At the end `OUT.rows` becomes `OUT`, in one step.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.results import ReadEmbedding, Refusal
from pocketlens.runtime.vectors.items import Item, list_items, read_item
from pocketlens.runtime.vectors.rows import Rows, check_parquet, write_parquet
from pocketlens.runtime.vectors.sidecar import Entry, Header, Sidecar, read_entries

__all__ = ["FORMATS", "Embedding", "VectorReport", "embed_here", "write_vectors"]

FORMATS: Final = (".npy", ".parquet")
"""Endings of a file of vectors."""

# Few calls to the system, and little to do again after a kill.
_COMMIT_ROWS: Final = 256
_COMMIT_S: Final = 1.0
# A power cut costs at most this much work; a kill costs less.
_SYNC_S: Final = 10.0


class Embedding(Protocol):
    """Embeds items: here, or by a cluster. Yields one result an item, in their order."""

    def __call__(self, items: Iterator[Item]) -> Generator[ReadEmbedding]:
        """Yield the results."""
        ...


class VectorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did.

    Attributes:
        rows: vectors in the file.
        resumed: pictures, refused ones among them, that an earlier run had finished.
        refused: all pictures without a vector, in the order of the source.
    """

    rows: int
    resumed: int
    refused: tuple[Entry, ...]


def embed_here(
    lens: Lens, *, batch_size: int = 4, threads: int | None = None, max_pixels: int | None = None
) -> Embedding:
    """Return what embeds items in this process; arguments as in `Lens.embed_images`."""
    max_bytes = lens.bundle.manifest.preprocess.max_bytes

    def embedding(items: Iterator[Item]) -> Generator[ReadEmbedding]:
        return lens.embed_read(
            items,
            lambda item: read_item(item, max_bytes),
            batch_size=batch_size,
            threads=threads,
            max_pixels=max_pixels,
        )

    return embedding


def write_vectors(
    source: str | os.PathLike[str],
    out: Path,
    header: Header,
    embedding: Embedding,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VectorReport:
    """Embed every picture of `source` into `out`, and return what was done.

    Args:
        source: a folder, a tar file or a table; see `pocketlens.runtime.vectors.items`.
        out: ends in `.npy` or `.parquet`.
        header: of the model in use.
        embedding: does the work.
        progress: called with how many pictures are done and how many there are.

    Raises:
        DataError: the source changed since the run that is continued, `out` holds vectors of another
            model, another process writes it, or its name ends otherwise.
        StorageFull: no space; the same call goes on when there is some.
        EngineError: the graph failed, or pyarrow is needed and not installed.
    """
    if out.suffix not in FORMATS:
        raise DataError(
            str(out), expected=f"a name that ends in {' or '.join(FORMATS)}", found=out.name, remedy="Choose another."
        )
    if out.suffix == ".parquet":
        check_parquet(out)
    total = sum(1 for _ in list_items(source))
    finished = out.exists()
    rows_path = out.with_name(f"{out.name}.rows")
    with Sidecar(out.with_name(f"{out.name}.files.jsonl"), header) as sidecar:
        if finished:
            return _unchanged(source, out, sidecar, total)
        with Rows(rows_path, header.dim) as rows:
            done = _resume(sidecar, rows)
            items = list_items(source)
            _check_same(items, sidecar, done, out)
            progress(done, total)
            count = _append(items, embedding, sidecar, rows, lambda more: progress(done + more, total))
            rows.seal(count)
            sidecar.sync()
            if out.suffix == ".parquet":
                entries = (entry for entry, _ in read_entries(sidecar.path))
                stated = {key: str(value) for key, value in msgspec.structs.asdict(header).items()}
                write_parquet(out, rows, count, entries, stated)
                rows_path.unlink()
            else:
                os.replace(rows_path, out)
            return VectorReport(rows=count, resumed=done, refused=_refused(sidecar))


def _resume(sidecar: Sidecar, rows: Rows) -> int:
    """Cut both files back to what both say, and return how many pictures are done."""
    stated = sum(entry.row is not None for entry, _ in read_entries(sidecar.path))
    intact = rows.intact(stated)
    done = count = 0
    end: int | None = None
    for entry, after in read_entries(sidecar.path):
        if entry.row is not None and entry.row >= intact:
            break
        done, end = done + 1, after
        count += entry.row is not None
    if end is None:
        with open(sidecar.path, "rb") as file:
            end = len(file.readline())
    sidecar.truncate(end)
    rows.truncate(count)
    return done


def _check_same(items: Iterator[Item], sidecar: Sidecar, done: int, out: Path) -> None:
    """Take `done` items and compare them with the sidecar."""
    for entry, _ in islice(read_entries(sidecar.path), done):
        item = next(items, None)
        if item is None or _stamp(item) != (entry.file, entry.size_bytes, entry.mtime_ns):
            raise DataError(
                str(out),
                expected=f"{entry.file}, as it was when its vector was written",
                found="no more pictures" if item is None else _difference(item, entry),
                remedy=f"Restore the source, or remove {sidecar.path.name} and the vectors to begin anew.",
            )


def _stamp(item: Item) -> tuple[str, int, int]:
    return item.name, item.size_bytes, item.mtime_ns


def _difference(item: Item, entry: Entry) -> str:
    if item.name != entry.file:
        return f"{item.name} in its place: a picture was added or removed"
    return f"{item.size_bytes} bytes written at another time, instead of {entry.size_bytes}"


def _append(
    items: Iterator[Item], embedding: Embedding, sidecar: Sidecar, rows: Rows, progress: Callable[[int], None]
) -> int:
    """Embed the rest of `items`, commit now and then, and return how many rows there are."""
    count, done = len(rows), 0
    vectors: list[NDArray[np.float32]] = []
    entries: list[Entry] = []
    waiting: deque[Item] = deque()

    def listed() -> Iterator[Item]:
        for item in items:
            waiting.append(item)
            yield item

    def commit() -> None:
        if vectors:
            rows.append(np.stack(vectors))
        sidecar.append(entries)
        vectors.clear()
        entries.clear()

    committed = synced = monotonic()
    with closing(embedding(listed())) as results:
        for result in results:
            item = waiting.popleft()
            done += 1
            entries.append(_entry(item, result, count))
            if not isinstance(result.outcome, Refusal):
                vectors.append(result.outcome)
                count += 1
            now = monotonic()
            if len(entries) >= _COMMIT_ROWS or now - committed > _COMMIT_S:
                commit()
                committed = now
                progress(done)
            if now - synced > _SYNC_S:
                rows.sync()
                sidecar.sync()
                synced = now
    commit()
    progress(done)
    return count


def _entry(item: Item, result: ReadEmbedding, row: int) -> Entry:
    about = Entry(file=item.name, size_bytes=item.size_bytes, mtime_ns=item.mtime_ns, sha256=result.sha256)
    if not isinstance(result.outcome, Refusal):
        return msgspec.structs.replace(about, row=row)
    error = result.outcome.error
    error.what = item.name
    return msgspec.structs.replace(about, refused=error.kind, message=str(error))


def _unchanged(source: str | os.PathLike[str], out: Path, sidecar: Sidecar, total: int) -> VectorReport:
    """Check that a finished file still fits its source: there is nothing to do."""
    entries = sum(1 for _ in read_entries(sidecar.path))
    if entries == 0:
        raise DataError(
            str(out),
            expected=f"its sidecar {sidecar.path.name}",
            found="a file of vectors without one",
            remedy="Write to another file, or remove this one.",
        )
    items = list_items(source)
    _check_same(items, sidecar, entries, out)
    added = next(items, None)
    if added is not None:
        raise DataError(
            str(out),
            expected=f"the {entries} pictures of the finished run",
            found=f"{total} pictures; {added.name} is new",
            remedy="Write to another file, or remove this one and its sidecar to begin anew.",
        )
    rows = sum(entry.row is not None for entry, _ in read_entries(sidecar.path))
    return VectorReport(rows=rows, resumed=entries, refused=_refused(sidecar))


def _refused(sidecar: Sidecar) -> tuple[Entry, ...]:
    return tuple(entry for entry, _ in read_entries(sidecar.path) if entry.refused is not None)
