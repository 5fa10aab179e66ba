"""The store's operations: remember, forget, search, and stay sound.

Letters: `M` rows of a store, `D` the length of a vector, `k` answers.
"""

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.building import memory_bytes
from pocketlens.runtime.store.copies import copied_rows, duplicate_groups
from pocketlens.runtime.store.database import connect, database_errors, transaction
from pocketlens.runtime.store.entries import count_entries, hits_of, vectors_of
from pocketlens.runtime.store.erasure import erase_scope, finish_erasures, rewrite
from pocketlens.runtime.store.models import Model, bound_model
from pocketlens.runtime.store.nearest import drop_index
from pocketlens.runtime.store.query import Query, direction
from pocketlens.runtime.store.remembered import known_files, refused_files
from pocketlens.runtime.store.rows import Dtype, Filter, Hit, Known, Receipt, Refused, Row, Written
from pocketlens.runtime.store.session import Session
from pocketlens.runtime.store.upgrade import Upgrade
from pocketlens.runtime.store.upkeep import Damage, StoreStats, find_damage, raise_damage, remove_damage, store_stats
from pocketlens.runtime.store.writing import (
    checked_vectors,
    label_files,
    put_refused,
    put_rows,
    remove_paths,
    touch_files,
)

__all__ = ["EXACT_ROWS", "Store"]

EXACT_ROWS: Final = 20_000
"""Up to so many rows every vector is compared; above, an index is built. Measured: docs/store.md."""


class Store:
    """Indexed files in one SQLite file, seen through one model version. Made by `Store.open`; close it.

    When `write` returns, its rows survive a kill of the process and a loss of power. A store may be used by
    several threads, one at a time; open it several times, in one process or many, for work at the same time.

    Attributes:
        path: the SQLite file. Indexes lie beside it in the folder PATH.index and can be deleted at any time.
        model_version: whose vectors it reads and writes; never those of another.
        dim: D of it.
    """

    def __init__(
        self, connection: apsw.Connection, path: Path, model: Model, *, memory: int, exact_rows: int, threads: int
    ) -> None:
        self._connection = connection
        self._model = model
        self._session = Session(connection, path, model, memory=memory, exact_rows=exact_rows, threads=threads)
        self._indexes = self._session.indexes
        self.path = path
        self.model_version = model.version
        self.dim = model.dim

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model_version: str | None = None,
        dim: int | None = None,
        create: bool = True,
        dtype: Dtype = "fp32",
        shadow: bool = False,
        memory: int | None = None,
        exact_rows: int = EXACT_ROWS,
        threads: int = 0,
    ) -> Self:
        """Return the store at `path`.

        Args:
            path: the SQLite file.
            model_version: of the bundle; a store of another version is refused. By default the one that answers.
            dim: D of the bundle.
            create: make the file if there is none; needs `model_version` and `dim`.
            dtype: how a new store keeps its vectors; a store that exists keeps its own.
            shadow: see the version that an upgrade is filling, instead of the one that answers.
            memory: bytes that vectors and index may take; by default half of the machine's memory.
            exact_rows: up to so many rows every vector is compared.
            threads: of building an index; 0 for one a core.

        Raises:
            StoreError: it cannot be opened, is damaged, or belongs to another model version.
            StorageFull: no space.
        """
        file = Path(path)
        connection = connect(file, model_version=model_version, dim=dim, dtype=dtype, create=create)
        try:
            with database_errors(file):
                state = "shadow" if shadow else "active"
                model = bound_model(connection, file, model_version=model_version, dim=dim, state=state)
                limit = memory_bytes() if memory is None else memory
                return cls(connection, file, model, memory=limit, exact_rows=exact_rows, threads=threads)
        except BaseException:
            with suppress(apsw.Error):  # what is being raised says more
                connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        self._session.close()

    def __len__(self) -> int:
        """Return M: the rows of this store's model version, of all tenants."""
        with self._session.reading:
            return count_entries(self._connection, self._model)

    @property
    def upgrade(self) -> Upgrade:
        """The way to another model version."""
        return Upgrade(self._connection, self.path, self._session.writing, self._session.reading)

    def write(
        self,
        rows: Sequence[Row] = (),
        *,
        touched: Sequence[Known] = (),
        refused: Sequence[Refused] = (),
        removed: Sequence[str] = (),
        tenant: str = "",
        replace: bool = False,
    ) -> Written:
        """Change the store in one transaction, everything or nothing, and return what the rows did.

        Writing the same again changes nothing: a file whose version and checksum are as before keeps its rows.

        Args:
            rows: of new or changed files. Several rows of one file follow one another and are all that it has.
            touched: files whose bytes are as before and whose size or time is not.
            refused: files that cannot be indexed; a row that such a path had goes.
            removed: paths that are gone.
            tenant: whose `touched`, `refused` and `removed` are; a row says it itself.
            replace: write rows of unchanged files as well, as for better captions.

        Raises:
            StoreError: a vector of the wrong shape, the file cannot be written, or the store has switched
                to another model version.
            StorageFull: no space; the store is as it was.
        """
        with self._session.writing_mine() as state:
            remove_paths(self._connection, removed, tenant)
            put_refused(self._connection, refused, tenant)
            touch_files(self._connection, touched, tenant)
            return put_rows(self._connection, self._model, rows, replace=replace, filling=state == "shadow")

    def label(
        self, paths: Sequence[str], *, tenant: str = "", album: str | None = None, visibility: str | None = None
    ) -> int:
        """Change album or visibility of files, what is given of them, and return how many files there were."""
        given = {"album": album, "visibility": visibility}
        with self._session.writing_mine():
            changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
            return label_files(self._connection, paths, tenant, changes)

    def known(self, folder: str | os.PathLike[str], *, tenant: str = "", itself: bool = False) -> dict[str, Known]:
        """Return what is remembered of the files below `folder` (an absolute path), by path.

        `itself`: of a file with exactly this path as well.
        """
        with self._session.reading:
            return known_files(self._connection, self._model, folder, tenant=tenant, itself=itself)

    def copies(self, sha256s: Collection[bytes], *, tenant: str = "") -> dict[bytes, list[Row]]:
        """Return the rows of files with these checksums, by checksum: what a copy or a moved file would get too."""
        with self._session.reading:
            return copied_rows(self._connection, self._model, sha256s, tenant)

    def refused(self, *, tenant: str = "") -> list[Refused]:
        """Return the files that were refused when they were last looked at, sorted by path."""
        with self._session.reading:
            return refused_files(self._connection, tenant)

    def search(
        self,
        vector: NDArray[np.float32] | None = None,
        *,
        k: int = 10,
        filter: Filter | None = None,
        words: str = "",
        unlike: NDArray[np.float32] | None = None,
        unlike_words: str = "",
        skip: Collection[int] = (),
    ) -> list[Hit]:
        """Return the `k` rows nearest to `vector (D,)` of unit norm, best first.

        Scores are exact, whatever found the rows. Among equal ones the row that was indexed first comes first.

        Args:
            vector: of a text or a picture; `None` to go by `words` alone.
            k: how many answers.
            filter: which rows are looked at; by default the visible ones of the tenant "".
            words: also rank captions by these words (BM25) and fuse both rankings (reciprocal rank fusion).
            unlike: a vector `(D,)` to keep away from: half of it is taken off the query, which is then
                brought back to unit norm. Scores are cosines with that.
            unlike_words: leave out rows whose caption has one of these words.
            skip: ids of rows that are no answer.

        Raises:
            StoreError: a vector has the wrong shape, the file is damaged, or this model version is gone.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        query = Query(
            vector=direction(vector, unlike, self.dim),
            filter=filter or Filter(),
            k=k,
            words=words,
            unlike_words=unlike_words,
            skip=frozenset(skip),
        )
        held = self._session.held_answer(query)
        if held is not None:
            return held
        # One snapshot: what is found is still there when it is read, whoever writes meanwhile.
        with self._session.reading:
            self._indexes.keep_up(self._session.serving)
            return self._indexes.answer(query)

    def search_many(
        self, vectors: NDArray[np.float32], *, k: int = 10, filter: Filter | None = None
    ) -> list[list[Hit]]:
        """Return what `search` does for each of `vectors (N, D)` of unit norm, all from one state of the store.

        An index is asked once for all of them, on as many threads as the store was opened with.

        Raises:
            StoreError: as `search`.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        queries = checked_vectors(list(vectors), self.dim, [f"query {number}" for number in range(len(vectors))])
        with self._session.reading:
            self._indexes.keep_up(self._session.serving)
            return self._indexes.answer_many(queries, k, filter or Filter())

    def more_like(self, row: int, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the `k` rows nearest to the row with this id (`Hit.id`), itself left out.

        Raises:
            StoreError: there is no such row.
        """
        return self.search(self.vector(row), k=k, filter=filter, skip=[row])

    def vector(self, row: int) -> NDArray[np.float32]:
        """Return the vector `(D,)` of the row with this id.

        Raises:
            StoreError: there is no such row, or it is damaged.
        """
        with self._session.reading:
            table = next(vectors_of(self._connection, self._model, [row])).table
        if not len(table):
            raise StoreError(
                f"row {row} of store {self.path}",
                expected="a row of this store",
                found="none, or a damaged one",
                remedy="Take an id from an answer of this store.",
            )
        return np.array(table[0])

    def hit(self, row: int) -> Hit | None:
        """Return the row with this id, with score 0; `None` when it is gone or damaged."""
        with self._session.reading:
            hits, _ = hits_of(self._connection, self._model, [row], None)
        return hits[0] if hits else None

    def duplicates(self, *, least: float = 0.97, tenant: str = "") -> list[list[Hit]]:
        """Return groups of near-duplicates: rows linked by a cosine of `least` or more; the largest groups first."""
        with self._session.reading:
            return duplicate_groups(self._connection, self._model, least=least, tenant=tenant)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Build, extend or renew the index where this store's size asks for one; else do nothing.

        Searches work without it, by comparing every vector. `progress` is called with rows done and rows.

        Raises:
            StoreError: the index cannot be written.
            StorageFull: no space.
        """
        with self._session.reading:
            self._indexes.prepare(self._session.serving, progress)

    def erase(
        self,
        *,
        file: str | None = None,
        album: str | None = None,
        tenant: str | None = None,
        rebuild: bool = True,
    ) -> Receipt:
        """Erase a file, an album or all of a tenant, of every model version, and return the receipt.

        Afterwards no byte of their vectors and captions is in any file of the store, which is checked.

        Args:
            file: a path.
            album: an album's name.
            tenant: whose file or album; alone: everything of this tenant.
            rebuild: build the index again where there was one; else the next `prepare` does.

        Raises:
            StoreError: something is still to be found, because another process holds on to an old state.
        """
        if (file is not None) + (album is not None) > 1 or (file is None and album is None and tenant is None):
            raise ValueError("erase: expected a file, an album, or a tenant")
        with self._session.alone():
            finish_erasures(self._connection, self.path)
            self._indexes.forget()
            receipt = erase_scope(self._connection, self.path, file=file, album=album, tenant=tenant or "")
        if rebuild:
            self.prepare()
        return receipt

    def damages(self) -> list[Damage]:
        """Read the whole store and return what is not as it was written; empty when all is well."""
        with self._session.alone():
            return list(find_damage(self._connection))

    def check(self) -> None:
        """Read the whole store and check that it is undamaged.

        Raises:
            StoreError: it is damaged; the message is the first finding.
        """
        with self._session.alone():
            raise_damage(find_damage(self._connection), self.path)

    def repair(self) -> int:
        """Remove damaged rows, make the index of captions anew, drop the other indexes; return what was wrong.

        The files of removed rows count as new: `index` makes their rows again.

        Raises:
            StoreError: SQLite's own structure is damaged; that cannot be mended row by row.
        """
        with self._session.alone():
            raise_damage((item for item in find_damage(self._connection) if item.kind == "database"), self.path)
            with transaction(self._connection):
                count = remove_damage(self._connection)
            drop_index(self.path)
            self._indexes.forget()
        return count

    def compact(self) -> None:
        """Write the file anew without free pages, empty its log, and finish erasures that were interrupted.

        Raises:
            StoreError: another process reads an old state.
            StorageFull: no space for the copy; the store is as it was.
        """
        with self._session.alone():
            if not finish_erasures(self._connection, self.path):
                rewrite(self._connection, self.path)
            self._indexes.changed()

    def stats(self) -> StoreStats:
        """Return what is in the store."""
        with self._session.reading:
            self._indexes.keep_up(self._session.serving)
            held = self._indexes.held
            kind = held.index.kind if held.index is not None else "scan"
            return store_stats(self._connection, self.path, kind=kind, index_rows=len(held.index or ()))

    @property
    def damaged(self) -> frozenset[int]:
        """Ids of rows that searches have left out because their checksum is wrong; see `repair`."""
        return frozenset(self._indexes.held.damaged)
