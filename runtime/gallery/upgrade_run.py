"""A model upgrade in the background of the gallery: start, progress, stop."""

import os
import threading

import msgspec

from pocketlens.core.errors import PocketlensError, StoreError
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.upgrade import UpgradeStatus
from pocketlens.runtime.upgrading import upgrade_store

__all__ = ["UpgradeRun", "UpgradeView"]

_ENDING_S = 30.0


class UpgradeView(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upgrade stands, for the page. Fields that are not explained are as in `UpgradeStatus`.

    Attributes:
        target: the model version that this gallery can go to; `None` when it was given none.
        running: whether rows are being made now.
        filled: whether the target has all its rows and can answer.
        can_return: whether this gallery has the bundle of `previous`.
    """

    active: str
    shadow: str | None
    previous: str | None
    files: int
    done: int
    skipped: int
    target: str | None
    running: bool
    filled: bool
    can_return: bool


class UpgradeRun:
    """Fills the rows of another model version in a thread of its own, without switching to it.

    Args:
        lens: of the other bundle.
        path: of the store, which is opened anew.
    """

    def __init__(self, lens: Lens, path: str | os.PathLike[str]) -> None:
        self.lens = lens
        self._path = path
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._error: PocketlensError | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def error(self) -> PocketlensError | None:
        """What the last run ended with; `None` when it was stopped or went well."""
        return self._error

    def start(self) -> None:
        """Begin, or go on where an earlier run stopped.

        Raises:
            StoreError: it is running already.
        """
        with self._lock:
            if self.running:
                raise StoreError(
                    "the upgrade",
                    expected="none under way",
                    found="one that is running",
                    remedy="Wait for it, or stop it first.",
                )
            self._stop.clear()
            self._error = None
            self._thread = threading.Thread(target=self._run, name="gallery-upgrade", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the batch that is being made, and wait for that. What was finished is kept."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(_ENDING_S)

    def view(self, status: UpgradeStatus, *, running: bool, can_return: bool) -> UpgradeView:
        """Return `status` with what this gallery knows of it; `running` as it was before the status was read."""
        to_do = status.files - status.done - status.skipped
        filled = status.shadow == self.lens.model_version and to_do <= 0 and not running
        return view_of(status, self.lens.model_version, running=running, filled=filled, can_return=can_return)

    def _run(self) -> None:
        try:
            upgrade_store(self.lens, self._path, switch=False, stop=self._stop.is_set)
        except PocketlensError as error:
            self._error = error


def view_of(
    status: UpgradeStatus, target: str | None, *, running: bool = False, filled: bool = False, can_return: bool = False
) -> UpgradeView:
    """Return `status` as the page shows it."""
    return UpgradeView(
        **msgspec.structs.asdict(status), target=target, running=running, filled=filled, can_return=can_return
    )
