"""What the rows of an index answer with, in one mapped file beside it: their stored vectors and what a `Hit` says.

A search then reads from SQLite only whether its rows are still there and unchanged: an entry never changes, and the
checksum of its file changes with everything else that an answer says. Like the index the file is made from the store,
is hashed before it is used, and may be deleted at any time.

Letters: `N` rows, `M` of them, `D` the length of a vector.
"""

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store.database import from_column
from pocketlens.runtime.store.encoding import blob_bytes, decoded
from pocketlens.runtime.store.entries import Vectors, all_file_digests, file_digests, hits_of, sound_rows
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.rows import Hit

__all__ = ["Answers", "write_answers"]

_MAGIC: Final = b"PLROWS01"
_HEAD: Final = np.dtype([("magic", "S8"), ("rows", "<i8"), ("space", "<i8")])
_BLOCK_ROWS: Final = 4096

_Columns = tuple[bytes, str | None, float | None, str, str, int, int | None, str | None, str, int | None]
"""The file's name, then caption, confidence, tenant, modality, at_ms, until_ms, album, visibility, taken_at."""
_RECORD: Final = (9, 10, 12, 7, 5, 6, 18, 19, 20)
"""Where all but the first stand in a row of `sound_rows`."""
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Columns).decode
_DECODE_ALL: Final = msgspec.msgpack.Decoder(list[_Columns]).decode
_ARRAY_OF: Final = struct.Struct(">BI")
_ARRAY_32: Final = 0xDD
"""How a list begins in MessagePack, before its number of elements."""
_NAMES: Final = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def write_answers(path: Path, connection: apsw.Connection, model: Model, *, rows: int) -> None:
    """Write the sound rows of `model`, of which there are at most `rows`, to the new file `path`.

    Runs inside the caller's read transaction. The parts of the file: head, ids, checksums of the files, where each
    record ends, vectors as the store keeps them, records.
    """
    size = blob_bytes(model.dtype, model.dim)
    ids, ends = np.zeros(rows, dtype="<i8"), np.zeros(rows, dtype="<i8")
    digests = np.zeros(rows, dtype="V8")
    places = _Places(rows, size)
    done = end = 0
    with path.open("wb") as file:
        for block in sound_rows(connection, model):
            records = [_ENCODE((os.fsencode(from_column(row[13])), *(row[at] for at in _RECORD))) for row in block]
            part = slice(done, done + len(block))
            ids[part] = [row[0] for row in block]
            digests[part] = np.frombuffer(b"".join(row[11] for row in block), dtype="V8")
            ends[part] = end + np.cumsum([len(record) for record in records])
            file.seek(places.vectors + done * size)
            file.write(b"".join(row[2] for row in block))
            file.seek(places.records + end)
            file.write(b"".join(records))
            done, end = done + len(block), end + sum(map(len, records))
        file.seek(0)
        file.write(np.array([(_MAGIC, done, rows)], dtype=_HEAD).tobytes())
        for column in (ids, digests, ends):
            file.write(column.tobytes())


class _Places:
    """Where the parts of a file with space for `space` rows begin."""

    def __init__(self, space: int, vector_bytes: int) -> None:
        self.ids = _HEAD.itemsize
        self.digests = self.ids + 8 * space
        self.ends = self.digests + 8 * space
        self.vectors = self.ends + 8 * space
        self.records = self.vectors + vector_bytes * space


class Answers:
    """The rows in one such file.

    Attributes:
        ids: `(N,)` int64, ascending.
    """

    def __init__(self, path: Path, model: Model, *, populate: bool = False) -> None:
        """Map the file at `path`, which was hashed; `populate`: all of it at once, see `load`.

        Raises:
            OSError: it is not such a file.
        """
        self._model = model
        with path.open("rb") as file:
            if sys.platform == "linux" and populate:
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                self._map = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
            else:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, rows, space = np.frombuffer(self._map, dtype=_HEAD, count=1)[0].tolist()
        if magic != _MAGIC:
            raise OSError("not the rows of an index")
        size = blob_bytes(model.dtype, model.dim)
        places = _Places(space, size)
        # Copies: what another process may overwrite while this one reads is read before `_is_intact` is asked.
        self.ids = np.frombuffer(self._map, dtype="<i8", count=rows, offset=places.ids).astype(np.int64)
        self._digests = bytes(self._map[places.digests : places.digests + 8 * rows])
        self._digest_table = np.frombuffer(self._digests, dtype="V8")
        ends = np.frombuffer(self._map, dtype="<i8", count=rows, offset=places.ends).astype(np.int64)
        self._vectors = np.frombuffer(self._map, dtype=np.uint8, count=rows * size, offset=places.vectors)
        self._vectors = self._vectors.reshape(rows, size)
        self._records = places.records
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])[:-1] + self._records
        self._stops = ends + self._records
        # Rows that nobody deleted have consecutive ids: where one is needs no search then.
        first, last = (int(self.ids[0]), int(self.ids[-1])) if rows else (0, -1)
        self._first_id = first if rows and last - first == rows - 1 else None
        self._fresh = np.zeros(rows, dtype=bool)
        # How many searches may go by before it is worth while to look which rows are as they were.
        self._patience = 0

    @classmethod
    def load(cls, path: Path, model: Model, *, populate: bool = False) -> Self:
        """Return the rows in the file at `path`, which was hashed.

        `populate`: let Linux fill the table of pages now, 0.3 s a gigabyte, instead of a page at a time when a search
        first comes upon it.

        Raises:
            OSError: it is not such a file.
        """
        try:
            return cls(path, model, populate=populate)
        except (ValueError, IndexError) as error:
            raise OSError(str(error)) from error

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where `ids (M,)` are in it, -1 for those that are not: `(M,)`."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        if self._first_id is not None:
            places = np.asarray(ids, dtype=np.int64) - self._first_id
            outside = places.view(np.uint64) >= len(self.ids)  # those below zero are large ones here
            if outside.any():
                places[outside] = -1
            return places
        places = self.ids.searchsorted(ids)
        places[places == len(self.ids)] = 0
        places[self.ids[places] != ids] = -1
        return places

    def table(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors at `places (M,)`: `(M, D)`."""
        return decoded(self._vectors[places], self._model.dtype, self._model.dim)

    def blocks(self, above: int = 0) -> Iterator[Vectors]:
        """Yield the vectors of ids greater than `above`, some thousands at a time, by id."""
        for first in range(int(self.ids.searchsorted(above, side="right")), len(self.ids), _BLOCK_ROWS):
            part = slice(first, first + _BLOCK_ROWS)
            yield Vectors(self.ids[part], decoded(self._vectors[part], self._model.dtype, self._model.dim), [])

    def changed(self) -> None:
        """Note that the store has changed: rows may be gone, files may have other columns."""
        self._fresh[:] = False

    def look(self, connection: apsw.Connection, model: Model) -> None:
        """Look which rows are as they were, if that is worth while; inside the caller's read transaction.

        It takes about as long as a hundredth as many searches spend looking for themselves.
        """
        self._patience -= 1
        if self._patience > 0 or not len(self.ids) or self._fresh.any():
            return
        for ids, digests in all_file_digests(connection, model):
            places = self.places(ids)
            now = np.frombuffer(digests, dtype="V8")
            same = (places >= 0) & (now == self._digest_table[places])
            self._fresh[places[same]] = True
        self._patience = len(self.ids) // 100

    def held_hits(self, places: NDArray[np.int64], scores: NDArray[np.float32], most: int) -> list[Hit] | None:
        """Return what `hits` does if nothing has to be read from the store for it, else `None`."""
        ranking = _ranking(places, scores, most)
        best = places[ranking]
        if not self._fresh[best].all():
            return None
        starts, stops = self._starts[best].tolist(), self._stops[best].tolist()
        records = [self._map[start:stop] for start, stop in zip(starts, stops, strict=True)]
        if not self._is_intact():
            return None
        ids, values = self.ids[best].tolist(), scores[ranking].tolist()
        columns = _DECODE_ALL(_ARRAY_OF.pack(_ARRAY_32, len(records)) + b"".join(records))
        return [_hit(*found) for found in zip(columns, ids, values, strict=True)]

    def hits(
        self,
        connection: apsw.Connection,
        model: Model,
        query: NDArray[np.float32],
        places: NDArray[np.int64],
        scores: NDArray[np.float32],
        most: int,
    ) -> list[Hit] | None:
        """Return the `most` best of the rows at `places (M,)` with `scores (M,)` that are still there, best first.

        Rows whose file has changed since are read from the store. `None` when somebody has begun to overwrite
        the file: then `scores` may be wrong as well.
        """
        if (held := self.held_hits(places, scores, most)) is not None:
            return held
        ranking = np.lexsort((places, -scores))
        ids: list[int] = self.ids[places[ranking]].tolist()
        numbers: list[int] = places[ranking].tolist()
        values: list[float] = scores[ranking].tolist()
        hits: list[Hit] = []
        changed: list[int] = []
        first = 0
        while len(hits) + len(changed) < most and first < len(ids):
            part = range(first, min(len(ids), first + most - len(hits) - len(changed)))
            first = part.stop
            now = file_digests(connection, model, ids[part.start : part.stop])
            records = [self._record(numbers[index]) for index in part]
            if not self._is_intact():
                return None
            for index, record in zip(part, records, strict=True):
                digest, place = now.get(ids[index]), numbers[index]
                if digest is None:
                    continue
                if digest == self._digests[8 * place : 8 * place + 8]:
                    hits.append(_hit(_DECODE(record), ids[index], values[index]))
                else:
                    changed.append(ids[index])
        if changed:
            read, _ = hits_of(connection, model, changed, query)
            hits = sorted([*hits, *read], key=lambda hit: (-hit.score, hit.id))
        return hits

    def _record(self, place: int) -> bytes:
        return self._map[int(self._starts[place]) : int(self._stops[place])]

    def _is_intact(self) -> bool:
        """Tell whether nobody has begun to overwrite the file, as an erasure does, from its first byte on."""
        return self._map[: len(_MAGIC)] == _MAGIC


def _ranking(places: NDArray[np.int64], scores: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Return where the `most` best of `scores (M,)` are, best first; of equal ones, the lower of `places (M,)`."""
    if len(scores) <= 2 * most:
        return np.lexsort((places, -scores))[:most]
    edge = np.partition(scores, len(scores) - most)[len(scores) - most]
    pool = np.flatnonzero(scores >= edge)
    return pool[np.lexsort((places[pool], -scores[pool]))[:most]]


def _hit(columns: _Columns, row: int, score: float) -> Hit:
    name, caption, confidence, tenant, modality, at_ms, until_ms, album, visibility, taken_at = columns
    return Hit(
        id=row,
        path=name.decode(*_NAMES),
        score=score,
        caption=caption,
        confidence=confidence,
        tenant=tenant,
        modality=modality,
        at_ms=at_ms,
        until_ms=until_ms,
        album=album,
        visibility=visibility,
        taken_at=taken_at,
    )
