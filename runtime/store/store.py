"""The store's operations: remember, forget, search.

Letters: `M` stored pictures, `D` the length of a vector.
"""

import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.database import (
    connect,
    database_errors,
    from_column,
    to_column,
    transaction,
)
from pocketlens.runtime.store.rows import Hit, Known, Refused, Row

__all__ = ["Store"]

_BLOCK_ROWS: Final = 4096
_FLOAT: Final = np.dtype("<f4")

_UPSERT: Final = """
INSERT INTO pictures(path, sha256, size_bytes, mtime_ns, model_version, dim, vector, caption,
                     confidence, indexed_at)
VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(path) DO UPDATE SET
    sha256 = excluded.sha256, size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns,
    model_version = excluded.model_version, dim = excluded.dim, vector = excluded.vector,
    caption = excluded.caption, confidence = excluded.confidence, indexed_at = excluded.indexed_at
"""


class Store:
    """Indexed pictures of one model version in one SQLite file. Made by `Store.open`; close it.

    When `write` returns, its rows survive a kill of the process and a loss of power.
    """

    def __init__(self, connection: apsw.Connection, path: Path, *, model_version: str, dim: int) -> None:
        self._connection = connection
        self.path = path
        self.model_version = model_version
        self.dim = dim

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, model_version: str, dim: int, create: bool = True) -> Self:
        """Return the store at `path`.

        Args:
            path: the SQLite file.
            model_version: of the bundle; a store of another version is refused.
            dim: D of the bundle.
            create: make the file if there is none.

        Raises:
            StoreError: it cannot be opened, is damaged, or belongs to another model version.
            StorageFull: no space.
        """
        file = Path(path)
        connection = connect(file, model_version=model_version, dim=dim, create=create)
        return cls(connection, file, model_version=model_version, dim=dim)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        self._connection.close()

    def __len__(self) -> int:
        """Return M."""
        with database_errors(self.path):
            return int(self._connection.execute("SELECT count(*) FROM pictures").get)

    def write(
        self,
        rows: Sequence[Row] = (),
        *,
        touched: Sequence[Known] = (),
        refused: Sequence[Refused] = (),
        removed: Sequence[str] = (),
    ) -> None:
        """Change the store in one transaction: everything or nothing.

        Args:
            rows: new or changed pictures.
            touched: pictures whose bytes are as before and whose size or time is not.
            refused: files that cannot be indexed; a row that such a path had goes.
            removed: paths that are gone.

        Raises:
            StoreError: a vector of the wrong shape, or the file cannot be written.
            StorageFull: no space; the store is as it was.
        """
        values = [self._values(row) for row in rows]
        with database_errors(self.path), transaction(self._connection):
            many = self._connection.executemany
            gone = [(to_column(path),) for path in (*removed, *(r.path for r in refused))]
            many("DELETE FROM pictures WHERE path = ?", gone)
            fine = [(to_column(path),) for path in (*(r.path for r in rows), *(k.path for k in touched))]
            many("DELETE FROM refused WHERE path = ?", [*fine, *gone])
            many(_UPSERT, values)
            many(
                "UPDATE pictures SET size_bytes = ?, mtime_ns = ? WHERE path = ?",
                [(k.size_bytes, k.mtime_ns, to_column(k.path)) for k in touched],
            )
            many(
                "INSERT INTO refused VALUES(?, ?, ?)",
                [(to_column(r.path), r.kind, _storable(r.message)) for r in refused],
            )

    def known(self, folder: str | os.PathLike[str]) -> dict[str, Known]:
        """Return what is remembered of the files below `folder` (an absolute path), by path."""
        prefix = os.path.join(os.fspath(folder), "")
        sql = "SELECT path, sha256, size_bytes, mtime_ns FROM pictures"
        with database_errors(self.path):
            rows = self._connection.execute(sql)
            known = (
                Known(path=from_column(path), sha256=sha, size_bytes=size, mtime_ns=mtime)
                for path, sha, size, mtime in rows
            )
            return {item.path: item for item in known if item.path.startswith(prefix)}

    def refused(self) -> list[Refused]:
        """Return the files that were refused when they were last looked at, sorted by path."""
        with database_errors(self.path):
            rows = self._connection.execute("SELECT path, kind, message FROM refused").fetchall()
        found = [Refused(path=from_column(path), kind=str(kind), message=str(text)) for path, kind, text in rows]
        return sorted(found, key=lambda item: item.path)

    def search(self, vector: NDArray[np.float32], *, k: int = 10) -> list[Hit]:
        """Return the `k` pictures nearest to `vector (D,)` of unit norm, best first.

        Exact: every stored vector is compared, in blocks, so memory does not grow with M. Among
        equal scores the one that was indexed first comes first.

        Raises:
            StoreError: `vector` has the wrong shape, or the file is damaged.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        query = self._checked(vector, "the query")
        hits: list[Hit] = []
        # One snapshot: what is found is still there when it is read, whoever writes meanwhile.
        with database_errors(self.path), self._connection:
            best = np.empty(0, dtype=np.float32)
            best_ids = np.empty(0, dtype=np.int64)
            for ids, vectors in self._blocks():
                best = np.concatenate([best, vectors @ query])
                best_ids = np.concatenate([best_ids, ids])
                order = np.argsort(-best, kind="stable")[:k]
                best, best_ids = best[order], best_ids[order]
            pairs = zip(best_ids.tolist(), best.tolist(), strict=True)
            hits.extend(self._hit(index, score) for index, score in pairs)
        return hits

    def check(self) -> None:
        """Read the whole file and check that it is undamaged.

        Raises:
            StoreError: it is damaged; the message is SQLite's first finding.
        """
        with database_errors(self.path):
            finding = self._connection.execute("PRAGMA integrity_check(1)").get
        if finding != "ok":
            raise self._damaged(str(finding))

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield ids `(N,)` and vectors `(N, D)`, at most `_BLOCK_ROWS` at a time, in the order of ids."""
        sql = "SELECT id, vector FROM pictures WHERE model_version = ? ORDER BY id"
        cursor = self._connection.execute(sql, (self.model_version,))
        while block := list(islice(cursor, _BLOCK_ROWS)):
            yield self._stacked(block)

    def _stacked(self, block: list[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids, blobs = zip(*block, strict=True)
        if set(map(len, blobs)) != {self.dim * _FLOAT.itemsize}:
            raise self._damaged("a vector of the wrong length")
        vectors = np.frombuffer(b"".join(blobs), dtype=_FLOAT).reshape(len(block), self.dim)
        return np.array(ids, dtype=np.int64), vectors

    def _hit(self, index: int, score: float) -> Hit:
        sql = "SELECT path, caption, confidence FROM pictures WHERE id = ?"
        path, caption, confidence = self._connection.execute(sql, (index,)).get
        return Hit(path=from_column(path), score=score, caption=caption, confidence=confidence)

    def _values(self, row: Row) -> tuple[Any, ...]:
        vector = self._checked(row.vector, f"the vector of {row.path}")
        return (
            to_column(row.path),
            row.sha256,
            row.size_bytes,
            row.mtime_ns,
            self.model_version,
            self.dim,
            vector.astype(_FLOAT).tobytes(),
            row.caption,
            row.confidence,
            int(time.time()),
        )

    def _checked(self, vector: NDArray[Any], what: str) -> NDArray[np.float32]:
        array = np.asarray(vector, dtype=np.float32)
        if array.shape != (self.dim,) or not np.isfinite(array).all():
            raise StoreError(
                what,
                expected=f"finite numbers of shape ({self.dim},)",
                found=f"shape {array.shape}, finite: {bool(np.isfinite(array).all())}",
                remedy="Use the vectors of the lens that this store was opened for.",
            )
        return array

    def _damaged(self, found: str) -> StoreError:
        return StoreError(
            f"store {self.path}",
            expected="an undamaged store",
            found=found,
            remedy="Move the file away and run `pocketlens index` again; the pictures are untouched.",
        )


def _storable(text: str) -> str:
    """Return `text` without the surrogates that an odd file name leaves in a message."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
