"""What the page can do with one store: ask, look, upgrade, erase. Knows nothing of HTTP."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

import msgspec

from pocketlens.core.errors import PictureError, StoreError
from pocketlens.runtime.finding import find
from pocketlens.runtime.gallery.asked import Erase, Like, Search
from pocketlens.runtime.gallery.thumbnails import Thumbnails
from pocketlens.runtime.gallery.upgrade_run import UpgradeRun, view_of
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.rows import Hit, Receipt
from pocketlens.runtime.store.store import Store
from pocketlens.runtime.store.upgrade import Upgrade

__all__ = ["Gallery"]

_VISIBLE: Final = "visible"
_Result = TypeVar("_Result")


class Gallery:
    """One store seen through one or two bundles, by several threads. Close it.

    Args:
        lens: of the bundle that is shown.
        path: of the store.
        upgrade: of the bundle that the store can be upgraded to.
        tenant: whose rows are shown; no other row is ever answered, drawn or erased.

    Raises:
        StoreError: no such store, or it answers with a model version of neither bundle.
    """

    def __init__(
        self, lens: Lens, path: str | os.PathLike[str], *, upgrade: Lens | None = None, tenant: str = ""
    ) -> None:
        self._lenses = {item.model_version: item for item in (lens, upgrade) if item is not None}
        self._path = path
        self._tenant = tenant
        self._run = None if upgrade is None else UpgradeRun(upgrade, path)
        self._lock = threading.RLock()
        self._thumbnails = Thumbnails(lens.bundle.manifest.preprocess)
        self._store = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop an upgrade after its batch and close the store."""
        if self._run is not None:
            self._run.stop()
        with self._lock:
            self._store.close()
            self._thumbnails.forget()

    @property
    def max_picture_bytes(self) -> int:
        """The largest picture that a search takes."""
        return self._lens.bundle.manifest.preprocess.max_bytes

    def status(self) -> dict[str, Any]:
        """Return what the page shows of store, model and upgrade."""
        return self._asking(self._status)

    def search(self, asked: Search, picture: bytes | None = None) -> list[dict[str, Any]]:
        """Return the rows that fit best, best first; see `pocketlens.runtime.finding.find`.

        Raises:
            PictureError: the picture was refused.
            StoreError: nothing was asked, or the store is damaged.
            BundleIncomplete: the bundle has no text encoder.
        """

        def ask() -> list[Hit]:
            return find(
                self._lens,
                self._store,
                asked.text,
                picture=picture,
                unlike=asked.unlike,
                k=asked.k,
                filter=asked.filter(self._tenant),
                hybrid=asked.hybrid,
            )

        return _shown(self._asking(ask))

    def like(self, asked: Like) -> list[dict[str, Any]]:
        """Return the rows nearest to a row that was found before.

        Raises:
            StoreError: there is no such row any more.
        """

        def ask() -> list[Hit]:
            self._row(asked.id)
            return self._store.more_like(asked.id, k=asked.k, filter=asked.filter(self._tenant))

        return _shown(self._asking(ask))

    def jpeg(self, row: int, side_px: int) -> bytes:
        """Return a small copy of the picture of a row.

        Raises:
            StoreError: there is no such row any more.
            PictureError: the file is gone, or it is a video or a text, which has no picture.
        """
        hit = self._asking(lambda: self._row(row))
        if hit.modality != "image":
            raise PictureError(
                hit.path,
                kind="type_not_allowed",
                expected="a picture",
                found=f"a row of kind {hit.modality}",
                remedy="Open the file itself.",
            )
        return self._thumbnails.jpeg(hit.path, side_px)

    def erase(self, asked: Erase) -> Receipt:
        """Erase a file or an album from the store, of every model version, and return the receipt.

        The pictures themselves stay where they are.

        Raises:
            StoreError: neither or both were named, the row is gone, or another process holds on to an old state.
        """
        if (asked.id is None) == (asked.album is None):
            raise StoreError(
                "an erasure",
                expected="a row or an album",
                found="neither" if asked.id is None else "both",
                remedy="Name what is to be erased.",
            )

        def ask() -> Receipt:
            if asked.album is not None:
                return self._store.erase(album=asked.album, tenant=self._tenant)
            return self._store.erase(file=self._row(asked.id or 0).path, tenant=self._tenant)

        try:
            return self._asking(ask)
        finally:
            self._thumbnails.forget()

    def start_upgrade(self) -> dict[str, Any]:
        """Fill the rows of the other bundle in the background.

        Raises:
            StoreError: there is no other bundle, it answers already, or another upgrade is under way.
        """
        run = self._runnable()

        def ask() -> dict[str, Any]:
            status = self._store.upgrade.status()
            version = run.lens.model_version
            if version in {status.active, status.previous} or (status.shadow or version) != version:
                raise StoreError(
                    "the upgrade",
                    expected=f"a store that has no rows of {version} and no other upgrade under way",
                    found=f"active {status.active}, filling {status.shadow}, previous {status.previous}",
                    remedy="Roll back, finish or cancel first.",
                )
            self._store.upgrade.begin(model_version=version, dim=run.lens.dim)
            run.start()
            return self._status()

        return self._asking(ask)

    def stop_upgrade(self) -> dict[str, Any]:
        """Stop filling; what was made is kept and a start goes on from there."""
        self._runnable().stop()
        return self.status()

    def cancel_upgrade(self) -> dict[str, Any]:
        """Stop filling and remove what was made."""
        self._runnable().stop()
        return self._change(Upgrade.cancel)

    def switch(self) -> dict[str, Any]:
        """Let the other bundle answer.

        Raises:
            StoreError: rows are missing, or no upgrade is under way.
        """
        self._runnable()
        return self._change(Upgrade.switch)

    def roll_back(self) -> dict[str, Any]:
        """Let the bundle from before the last switch answer again.

        Raises:
            StoreError: there is none, or this gallery was not given it.
        """

        def ask(upgrade: Upgrade) -> None:
            previous = upgrade.status().previous
            if previous is not None and previous not in self._lenses:
                raise StoreError(
                    "the way back",
                    expected=f"the bundle of model version {previous}",
                    found=f"those of {', '.join(self._lenses)}",
                    remedy="Start the gallery with that bundle as well, or use `pocketlens store rollback`.",
                )
            upgrade.roll_back()

        return self._change(ask)

    def finish_upgrade(self) -> dict[str, Any]:
        """Remove the rows of the version from before the last switch: no way back after this."""
        return self._change(Upgrade.finish)

    @property
    def _lens(self) -> Lens:
        return self._lenses[self._store.model_version]

    def _runnable(self) -> UpgradeRun:
        if self._run is None:
            raise StoreError(
                "the upgrade",
                expected="a second bundle",
                found="none",
                remedy="Start the gallery with `--upgrade-to BUNDLE`.",
            )
        return self._run

    def _change(self, change: Callable[[Upgrade], None]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            change(self._store.upgrade)
            self._reopen()
            return self._status()

        return self._asking(ask)

    def _asking(self, ask: Callable[[], _Result]) -> _Result:
        """Return what `ask` returns; when the store has switched meanwhile, ask once more with the right bundle."""
        with self._lock:
            try:
                return ask()
            except StoreError:
                if self._store.upgrade.status().active == self._store.model_version:
                    raise
                self._reopen()
                return ask()

    def _opened(self) -> Store:
        store = Store.open(self._path, create=False)
        lens = self._lenses.get(store.model_version)
        if lens is None:
            version = store.model_version
            store.close()
            raise StoreError(
                f"store {self._path}",
                expected=f"a store for model version {' or '.join(self._lenses)}",
                found=f"one for {version}",
                remedy="Give the bundle that the store was indexed with, or index with this one.",
            )
        return store

    def _reopen(self) -> None:
        store = self._opened()
        self._store.close()
        self._store = store

    def _row(self, row: int) -> Hit:
        hit = self._store.hit(row)
        # Ids are small numbers that can be guessed; what a search would not show is not there.
        if hit is None or hit.tenant != self._tenant or hit.visibility != _VISIBLE:
            raise StoreError(
                f"row {row}",
                expected="a row of this store",
                found="none, or a damaged one",
                remedy="It may have been erased or indexed again since: search again.",
            )
        return hit

    def _status(self) -> dict[str, Any]:
        run = self._run
        # Asked before the status: an upgrade that ends in between is shown as running once more, never as stuck.
        running = run is not None and run.running
        status = self._store.upgrade.status()
        if status.active != self._store.model_version:
            self._reopen()  # another process has switched
        can_return = status.previous in self._lenses
        if run is None:
            view = view_of(status, None, can_return=can_return)
        else:
            view = run.view(status, running=running, can_return=can_return)
        error = None if run is None or run.error is None else run.error.fields()
        return {
            "model_version": self._store.model_version,
            "tenant": self._tenant,
            "rows": len(self._store),
            "captions": self._lens.captions_pictures,
            "max_picture_bytes": self.max_picture_bytes,
            "damaged": len(self._store.damaged),
            "upgrade": {**msgspec.structs.asdict(view), "error": error},
        }


def _shown(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    shown = []
    for hit in hits:
        folder, name = os.path.split(hit.path)
        shown.append({**msgspec.structs.asdict(hit), "name": name, "folder": folder})
    return shown
