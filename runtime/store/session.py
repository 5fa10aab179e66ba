"""One open store: its connection, its model version, and the transactions that everything runs in."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import apsw

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import database_error, database_errors, transaction
from pocketlens.runtime.store.indexes import Indexes
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.query import Query
from pocketlens.runtime.store.rows import Hit

__all__ = ["Reading", "Session"]


class Reading:
    """A read transaction as a context: whoever writes meanwhile, the block sees one state of the store.

    A class and not a generator: a search enters it, and generators took 6 µs of one.
    """

    def __init__(self, connection: apsw.Connection, path: Path, lock: threading.RLock) -> None:
        self._connection = connection
        self._path = path
        self._lock = lock
        self._depth = 0
        self._began = False

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            if self._depth == 0:
                # Within a write transaction it sees what that wrote.
                self._began = not self._connection.in_transaction
                if self._began:
                    self._connection.execute("BEGIN")
        except apsw.Error as error:
            self._lock.release()
            raise database_error(error, self._path) from error
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._depth -= 1
            if self._depth == 0 and self._began and self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except apsw.Error as late:
            if error is None:
                raise database_error(late, self._path) from late
        finally:
            self._lock.release()
        if isinstance(error, apsw.Error):
            raise database_error(error, self._path) from error


class Session:
    """What the operations of one open store share.

    Attributes:
        connection: to the file.
        path: of the file.
        model: the version that it reads and writes.
        indexes: what was derived from its rows.
        reading: `with session.reading:` is one read transaction, and one thread at a time.
    """

    def __init__(
        self, connection: apsw.Connection, path: Path, model: Model, *, memory: int, exact_rows: int, threads: int
    ) -> None:
        self.connection = connection
        self.path = path
        self.model = model
        self.indexes = Indexes(connection, path, model, memory=memory, exact_rows=exact_rows, threads=threads)
        self._lock = threading.RLock()
        self.reading = Reading(connection, path, self._lock)

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        with self._lock:
            self.indexes.forget()
            # A disk that fails now keeps the log from being folded into the file. What was acknowledged is in the
            # log, and the next one who opens the store reads it from there.
            with suppress(apsw.Error):
                self.connection.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the block without a transaction, one thread at a time."""
        with self._lock, database_errors(self.path):
            yield

    def held_answer(self, query: Query) -> list[Hit] | None:
        """Return the answers to `query` if they need no transaction, else `None`; see `Indexes.held_answer`."""
        with self._lock:
            try:
                return self.indexes.held_answer(query)
            except apsw.Error as error:
                raise database_error(error, self.path) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block in one write transaction, whatever became of this model version."""
        with self.alone(), transaction(self.connection):
            yield
            self.indexes.changed()

    @contextmanager
    def writing_mine(self) -> Iterator[str]:
        """Run the block in one write transaction; the value is this model version's state.

        Raises:
            StoreError: the store has switched to another version.
        """
        with self.writing():
            yield self._still_mine(("active", "shadow"))

    def serving(self) -> None:
        """Do nothing while there is this model version.

        Raises:
            StoreError: it was removed.
        """
        self._still_mine(("active", "shadow", "previous"))

    def _still_mine(self, states: Sequence[str]) -> str:
        """Return the state of this store's model version, which must be one of `states`."""
        state = self.connection.execute("SELECT state FROM models WHERE id = ?", (self.model.id,)).get
        if state not in states:
            raise StoreError(
                f"store {self.path}",
                expected=f"model version {self.model.version}, which this store was opened for",
                found="a switch to another one" if state else "that its rows were removed",
                remedy="Open the store again, with the bundle that it has now.",
            )
        return str(state)
