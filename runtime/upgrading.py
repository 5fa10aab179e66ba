"""A store from one model version to the next, while it answers."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import read_bytes
from pocketlens.runtime.folder import SourceFile
from pocketlens.runtime.indexing import IndexProgress, RowReader, lens_rows
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.rows import Dtype, Known, Row
from pocketlens.runtime.store.store import Store
from pocketlens.runtime.store.upgrade import UpgradeStatus

__all__ = ["upgrade_store"]


def upgrade_store(
    lens: Lens,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    dtype: Dtype = "fp32",
    switch: bool = True,
    readers: Sequence[RowReader] = (),
    progress: Callable[[IndexProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> UpgradeStatus:
    """Make the rows of `lens`'s model version for every file of the store, then let it answer.

    The store answers with its present version all the while, in this process and others. Each batch is one
    transaction: a run that was killed or stopped goes on where it was. Files that are gone, changed or refused
    are skipped; the next `index` with the new bundle looks at them. The old rows stay, for a way back, until
    `Store.upgrade.finish`.

    Args:
        lens: of the new bundle.
        path: of the store.
        batch_size: pictures per encoder call and per transaction.
        dtype: how the new vectors are kept.
        switch: let the new version answer at the end.
        readers: for files that are no pictures, as in `index_folder`.
        progress: called after each batch.
        stop: asked before each batch; true ends the run without a switch.

    Raises:
        StoreError: no such store, or another upgrade is under way.
        StorageFull: no space; finished batches are kept.
        EngineError: a graph failed.
    """
    with Store.open(path, create=False) as store:
        if store.model_version == lens.model_version:
            return store.upgrade.status()
        store.upgrade.begin(model_version=lens.model_version, dim=lens.dim, dtype=dtype)
        with Store.open(path, model_version=lens.model_version, dim=lens.dim, shadow=True) as shadow:
            while True:
                while not stop() and (files := store.upgrade.missing(batch_size)):
                    _fill(lens, shadow, store, files, readers)
                    if progress is not None:
                        at = store.upgrade.status()
                        progress(IndexProgress(at.done + at.skipped, at.files))
                if stop():
                    break
                shadow.prepare()
                # Files that somebody indexed since the last look are still to do.
                if not switch or store.upgrade.switch_if_filled():
                    break
        return store.upgrade.status()


def _fill(
    lens: Lens, shadow: Store, store: Store, files: Sequence[tuple[str, Known]], readers: Sequence[RowReader]
) -> None:
    """Write the shadow rows of `files`, and skip those that cannot be had."""
    owners = {suffix: reader for reader in readers for suffix in reader.suffixes}
    pictures: list[tuple[str, SourceFile, bytes, bytes]] = []
    rows: list[Row] = []
    for tenant, known in files:
        file = SourceFile(known.path, known.size_bytes, known.mtime_ns)
        if file.suffix in owners:
            with suppress(PictureError):
                found = owners[file.suffix].rows(file, known.sha256)
                rows += [msgspec.structs.replace(row, tenant=tenant) for row in found]
            continue
        with suppress(PictureError):
            data = read_bytes(known.path, max_bytes=lens.bundle.manifest.preprocess.max_bytes)
            if hashlib.sha256(data).digest() == known.sha256:
                pictures.append((tenant, file, known.sha256, data))
    described = lens_rows(
        lens,
        [(file, sha256, None) for _, file, sha256, _ in pictures],
        [data for *_, data in pictures],
        batch_size=max(len(pictures), 1),
    )
    for (tenant, *_), item in zip(pictures, described, strict=True):
        if isinstance(item, Row):
            rows.append(msgspec.structs.replace(item, tenant=tenant))
    shadow.write(rows)
    written = {(row.tenant, row.path) for row in rows}
    missed = [(tenant, known.path) for tenant, known in files if (tenant, known.path) not in written]
    if missed:
        store.upgrade.skip(missed)
