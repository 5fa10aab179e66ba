"""Disks that fail, as SQLite VFSs: one that forgets unsynced writes when the power goes, and errors on demand."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

SECTOR_BYTES = 512


class Disk(apsw.VFS):
    """Passes everything to the real file system and remembers what was not synced.

    Attributes:
        operations: writes, truncations and syncs so far.
        fails_at: the operation with this number, and every later one while `stays_broken`, raises `error`.
        lies: `sync` says that all is well and does nothing: for the proof that the check can fail.
    """

    def __init__(self, name: str, base: str) -> None:
        super().__init__(name, base, makedefault=True)
        self.base = base
        self.operations = 0
        self.fails_at: int | None = None
        self.stays_broken = True
        self.error: type[apsw.Error] = apsw.IOError
        self.lies = False
        self.read_only = False
        self.durable: dict[str, bytes] = {}
        self.pending: dict[str, list[tuple[int, bytes] | int]] = {}
        self.deleted: dict[str, bytes] = {}

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if self.read_only and path is not None:
            if flags[0] & apsw.SQLITE_OPEN_CREATE and not Path(path).exists():
                raise apsw.CantOpenError("read-only disk")
            if flags[0] & apsw.SQLITE_OPEN_READWRITE:
                flags[0] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
                flags[0] |= apsw.SQLITE_OPEN_READONLY
        return File(self, name, path, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.count()
        path = Path(filename)
        if path.exists() and not syncdir:
            self.deleted[filename] = self.durable.get(filename, b"")
        super().xDelete(filename, syncdir)
        self.durable.pop(filename, None)
        self.pending.pop(filename, None)

    def count(self) -> None:
        """Count an operation; fail when its time has come."""
        self.operations += 1
        if self.fails_at is not None and (
            self.operations == self.fails_at or (self.stays_broken and self.operations > self.fails_at)
        ):
            raise self.error("the disk fails")

    def lose_power(self, numbers: random.Random) -> None:
        """Leave the files as they might be after a power cut: of unsynced writes, any sectors in any order or none."""
        for filename in {*self.pending, *self.durable, *self.deleted}:
            content = bytearray(self.durable.get(filename, self.deleted.get(filename, b"")))
            share = numbers.choice((0.0, 0.3, 0.7, 1.0))
            for change in self.pending.get(filename, []):
                if isinstance(change, int):
                    if numbers.random() < share:
                        del content[change:]
                        content.extend(bytes(change - len(content)))
                    continue
                offset, data = change
                for first in range(0, len(data), SECTOR_BYTES):
                    if numbers.random() < share:
                        piece = data[first : first + SECTOR_BYTES]
                        begin = offset + first
                        content.extend(bytes(max(0, begin + len(piece) - len(content))))
                        content[begin : begin + len(piece)] = piece
            synced_once = filename in self.durable
            if filename in self.deleted and filename not in self.pending and numbers.random() < 0.5:
                Path(filename).unlink(missing_ok=True)
            elif synced_once or content or numbers.random() < 0.5:
                Path(filename).write_bytes(bytes(content))
            else:
                Path(filename).unlink(missing_ok=True)


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, path: str | None, flags: list[int]) -> None:
        super().__init__(disk.base, name, flags)
        self.disk, self.path = disk, path or ""
        if self.path and self.path not in disk.durable and self.path not in disk.pending:
            existing = Path(self.path).read_bytes() if Path(self.path).exists() else b""
            if existing:
                disk.durable[self.path] = existing

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.count()
        super().xWrite(data, offset)
        self.disk.pending.setdefault(self.path, []).append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        self.disk.count()
        super().xTruncate(newsize)
        self.disk.pending.setdefault(self.path, []).append(newsize)

    def xSync(self, flags: int) -> None:
        self.disk.count()
        if not self.disk.lies:
            self.disk.durable[self.path] = Path(self.path).read_bytes()
            self.disk.pending[self.path] = []

    def xDeviceCharacteristics(self) -> int:
        return 0  # promises nothing: no atomic sectors, no safe append

    def xSectorSize(self) -> int:
        return SECTOR_BYTES


@contextmanager
def faulty_disk(name: str = "pocketlens-faulty") -> Iterator[Disk]:
    """Make every connection that is opened meanwhile use the disk."""
    before = apsw.vfs_names()[0]
    disk = Disk(name, before)
    try:
        yield disk
    finally:
        apsw.set_default_vfs(before)
        disk.unregister()
