"""From one model version to the next while the store answers: fill in the background, then switch.

Each step is one transaction, so a kill leaves the step done or not done; the next run goes on from there.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import apsw
import msgspec

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import from_column, to_column
from pocketlens.runtime.store.models import Model, active_model, bound_model, model_in_state
from pocketlens.runtime.store.nearest import drop_index
from pocketlens.runtime.store.rows import Dtype, Known

__all__ = ["Upgrade", "UpgradeStatus"]

_MISSING = """
FROM files f WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.file = f.id AND e.model = ?1)
AND NOT EXISTS (SELECT 1 FROM skipped s WHERE s.file = f.id AND s.model = ?1)
"""


class UpgradeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upgrade stands.

    Attributes:
        active: the model version that answers.
        shadow: the one that is being filled; `None` when no upgrade is under way.
        previous: the one that can be rolled back to; `None` when there is none.
        files: files in the store.
        done: of those, files with rows of the shadow version.
        skipped: files that the new model could not look at: gone, changed or refused.
    """

    active: str
    shadow: str | None
    previous: str | None
    files: int
    done: int
    skipped: int


class Upgrade:
    """The upgrade of one store: `Store.upgrade`. Each method is one transaction.

    The way: `begin`; until `missing` is empty, write the rows of those files to a store that was opened with
    `shadow=True`, and `skip` those that cannot be had; `prepare` that store; `switch`. Later `finish`, or `roll_back`.
    `pocketlens.runtime.upgrade_store` does all of it.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        path: Path,
        writing: Callable[[], AbstractContextManager[None]],
        reading: AbstractContextManager[None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._writing = writing
        self._reading = reading

    def begin(self, *, model_version: str, dim: int, dtype: Dtype = "fp32") -> None:
        """Register `model_version` as the shadow; nothing happens when it is that already.

        Raises:
            StoreError: another upgrade is under way, or the store has rows of that version already.
        """
        with self._writing():
            _begin(self._connection, self._path, model_version=model_version, dim=dim, dtype=dtype)

    def missing(self, limit: int = 256) -> list[tuple[str, Known]]:
        """Return at most `limit` files that have neither rows of the shadow nor were skipped, with their tenants."""
        with self._reading:
            return _missing(self._connection, self._shadow(), limit)

    def skip(self, files: Sequence[tuple[str, str]]) -> None:
        """Note that `files`, pairs of tenant and path, cannot be had; the next `index` looks at them again."""
        with self._writing():
            _skip(self._connection, self._shadow(), files)

    def status(self) -> UpgradeStatus:
        """Return where it stands."""
        with self._reading:
            return _status(self._connection, self._path)

    def switch(self) -> None:
        """Let the shadow version answer; the one that answered until now can be rolled back to.

        Stores that are open go on answering with their own version until it is removed.

        Raises:
            StoreError: no upgrade is under way, or files are still missing.
        """
        with self._writing():
            gone = model_in_state(self._connection, "previous")
            _switch(self._connection, self._path)
        if gone is not None:
            drop_index(self._path, gone.id)

    def switch_if_filled(self) -> bool:
        """Switch, unless files are still missing; return whether the shadow version answers now."""
        with self._reading:
            if _missing(self._connection, self._shadow(), 1):
                return False
        try:
            self.switch()
        except StoreError:
            if self.missing(1):
                return False
            raise
        return True

    def roll_back(self) -> None:
        """Let the previous version answer again. Files that were added since have to be indexed again.

        Raises:
            StoreError: there is none, or a further upgrade is under way.
        """
        with self._writing():
            _roll_back(self._connection, self._path)

    def finish(self) -> None:
        """Remove the rows and the index of the previous version: no way back after this."""
        self._remove("previous")

    def cancel(self) -> None:
        """Remove the rows and the index of the shadow."""
        self._remove("shadow")

    def _remove(self, state: str) -> None:
        with self._writing():
            model = model_in_state(self._connection, state)
            if model is not None:
                _drop_model(self._connection, model)
        if model is not None:
            drop_index(self._path, model.id)

    def _shadow(self) -> Model:
        return bound_model(self._connection, self._path, model_version=None, dim=None, state="shadow")


def _begin(connection: apsw.Connection, path: Path, *, model_version: str, dim: int, dtype: Dtype) -> None:
    """Register `model_version` as the shadow; nothing happens when it is that already.

    Raises:
        StoreError: another upgrade is under way, or the version is in use.
    """
    shadow = model_in_state(connection, "shadow")
    if shadow is not None and (shadow.version, shadow.dim) == (model_version, dim):
        return
    taken = connection.execute("SELECT state FROM models WHERE version = ?", (model_version,)).get
    if shadow is not None or taken is not None:
        raise StoreError(
            f"store {path}",
            expected="no upgrade under way, and a model version that the store does not have",
            found=f"an upgrade to {shadow.version}" if shadow is not None else f"{model_version} as {taken}",
            remedy="Finish or cancel the other upgrade first: `pocketlens store upgrade --help`.",
        )
    connection.execute(
        "INSERT INTO models(version, dim, dtype, state) VALUES(?, ?, ?, 'shadow')", (model_version, dim, dtype)
    )


def _missing(connection: apsw.Connection, shadow: Model, limit: int) -> list[tuple[str, Known]]:
    """Return at most `limit` files without rows of the shadow version, each with its tenant."""
    rows = connection.execute(
        f"SELECT f.tenant, f.file_id, f.sha256, f.size_bytes, f.mtime_ns {_MISSING} ORDER BY f.id LIMIT ?2",
        (shadow.id, limit),
    )
    return [
        (owner, Known(path=from_column(name), sha256=sha, size_bytes=size, mtime_ns=mtime))
        for owner, name, sha, size, mtime in rows
    ]


def _skip(connection: apsw.Connection, shadow: Model, files: Sequence[tuple[str, str]]) -> None:
    """Note that the shadow version has nothing to say about `files`, pairs of tenant and path."""
    connection.executemany(
        "INSERT OR IGNORE INTO skipped SELECT ?, id FROM files WHERE tenant = ? AND file_id = ?",
        [(shadow.id, tenant, to_column(name)) for tenant, name in files],
    )


def _status(connection: apsw.Connection, path: Path) -> UpgradeStatus:
    """Return where the upgrade stands."""
    shadow, previous = model_in_state(connection, "shadow"), model_in_state(connection, "previous")
    done = skipped = 0
    files = connection.execute("SELECT count(*) FROM files").get
    if shadow is not None:
        done = connection.execute("SELECT count(DISTINCT file) FROM entries WHERE model = ?", (shadow.id,)).get
        skipped = connection.execute("SELECT count(*) FROM skipped WHERE model = ?", (shadow.id,)).get
    return UpgradeStatus(
        active=active_model(connection, path).version,
        shadow=None if shadow is None else shadow.version,
        previous=None if previous is None else previous.version,
        files=int(files),
        done=int(done),
        skipped=int(skipped),
    )


def _switch(connection: apsw.Connection, path: Path) -> None:
    """Let the shadow version answer; the one that answered until now can be rolled back to.

    Raises:
        StoreError: no upgrade is under way, or files are still missing.
    """
    shadow = model_in_state(connection, "shadow")
    left = 0 if shadow is None else connection.execute(f"SELECT count(*) {_MISSING}", (shadow.id,)).get
    if shadow is None or left:
        raise StoreError(
            f"store {path}",
            expected="an upgrade whose files are all done",
            found="no upgrade" if shadow is None else f"{left} files to do",
            remedy="Run `pocketlens store upgrade`: it goes on where it stopped.",
        )
    before, active = model_in_state(connection, "previous"), active_model(connection, path)
    if before is not None:
        _drop_model(connection, before)
    _set_state(connection, active, "previous")
    _set_state(connection, shadow, "active")


def _roll_back(connection: apsw.Connection, path: Path) -> None:
    """Let the previous version answer again. Files that were added since have to be indexed again.

    Raises:
        StoreError: there is none, or a further upgrade is under way.
    """
    previous, shadow = model_in_state(connection, "previous"), model_in_state(connection, "shadow")
    if previous is None or shadow is not None:
        raise StoreError(
            f"store {path}",
            expected="a previous model version and no upgrade under way",
            found="none" if previous is None else f"an upgrade to {shadow.version if shadow else ''}",
            remedy="Index with the bundle that is wanted, or cancel the upgrade first.",
        )
    active = active_model(connection, path)
    # In the order that never has two of one state.
    _set_state(connection, active, "shadow")
    _set_state(connection, previous, "active")
    _set_state(connection, active, "previous")


def _drop_model(connection: apsw.Connection, model: Model) -> None:
    """Delete everything of `model`."""
    connection.execute("DELETE FROM entries WHERE model = ?", (model.id,))
    connection.execute("DELETE FROM skipped WHERE model = ?", (model.id,))
    connection.execute("DELETE FROM models WHERE id = ?", (model.id,))


def _set_state(connection: apsw.Connection, model: Model, state: str) -> None:
    connection.execute("UPDATE models SET state = ? WHERE id = ?", (state, model.id))
