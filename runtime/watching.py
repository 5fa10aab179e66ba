"""A folder that is followed: what changes in it is in the store a moment later."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from pocketlens.runtime.folder import checked_folder
from pocketlens.runtime.indexing import IndexProgress, IndexReport, RowReader, index_folder
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.store import Store

__all__ = ["notifies", "watch_folder"]

_QUIET_MS: Final = 50
"""A burst of changes is taken together once nothing happened for so long."""
_BURST_MS: Final = 500
_TURN_MS: Final = 1000
"""How often a watch without changes looks whether it should stop."""
_RESCAN_S: Final = 600.0
"""The kernel drops changes when too many come at once: a stat of every file now and then finds those."""


def notifies() -> bool:
    """Tell whether the extra `watch` is installed, so that the system says what changes."""
    return find_spec("watchfiles") is not None


def watch_folder(
    lens: Lens,
    store: Store,
    folder: str | os.PathLike[str],
    *,
    report: Callable[[IndexReport], None],
    stop: threading.Event,
    poll_s: float | None = None,
    batch_size: int = 16,
    tenant: str = "",
    album: str | None = None,
    readers: Sequence[RowReader] = (),
    progress: Callable[[IndexProgress], None] | None = None,
) -> None:
    """Index `folder`, then keep the store up to date with it until `stop` is set.

    New, changed, moved and deleted files are noticed through the system's notifications when the extra
    `watch` is installed, else by looking at every file's size and time every two seconds. A file that is still
    being written may be refused at first; it is looked at again when it changes.

    Args:
        lens: as in `index_folder`.
        store: as in `index_folder`.
        folder: as in `index_folder`.
        report: called after the first run, and after each later one that changed something.
        stop: ends the watch, within a second.
        poll_s: look at every file this often instead of being told.
        batch_size: as in `index_folder`.
        tenant: as in `index_folder`.
        album: as in `index_folder`.
        readers: as in `index_folder`.
        progress: of the first run.

    Raises:
        PictureError: `folder` is missing, also when it goes away later.
        StoreError: as in `index_folder`.
        StorageFull: no space.
        EngineError: a graph failed.
    """
    if poll_s is not None and poll_s <= 0:
        raise ValueError(f"poll_s: expected more than 0, found {poll_s}")
    root = checked_folder(folder)
    # The watch begins before the first run, so that nothing falls between the two.
    changes = _told(root, stop) if poll_s is None and notifies() else _polled(stop, poll_s or 2.0)
    next(changes, None)

    def run(only: set[str] | None, shown: Callable[[IndexProgress], None] | None = None) -> IndexReport:
        return index_folder(
            lens,
            store,
            root,
            batch_size=batch_size,
            tenant=tenant,
            album=album,
            readers=readers,
            only=only,
            progress=shown,
        )

    report(run(None, progress))
    refused: object = None
    for paths in changes:
        done = run(paths)
        # A file that stays refused is tried at every look, and said once.
        if done.added or done.removed or (done.refused and done.refused != refused):
            report(done)
        refused = done.refused


def _told(root: str, stop: threading.Event) -> Iterator[set[str] | None]:
    """Yield paths that changed; `None` for "look at everything". The first one says that the watch has begun."""
    watchfiles: Any = import_module("watchfiles")
    batches = watchfiles.watch(
        root,
        watch_filter=None,
        debounce=_BURST_MS,
        step=_QUIET_MS,
        rust_timeout=_TURN_MS,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=True,
    )
    scanned = time.monotonic()
    begun = False
    for batch in batches:
        if not begun:
            # What came while the watch began is seen by the first run.
            begun = True
            yield None
        elif batch:
            yield {path for _, path in batch}
        elif time.monotonic() - scanned > _RESCAN_S:
            scanned = time.monotonic()
            yield None


def _polled(stop: threading.Event, poll_s: float) -> Iterator[set[str] | None]:
    yield None
    while not stop.wait(poll_s):
        yield None
