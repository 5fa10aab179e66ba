"""Kills a process that writes to a store, over and over, and looks for what it had acknowledged.

Run: python -m benchmarks.store_kills --kills 10000

A child writes, replaces and removes rows and says after each commit which one. The parent ends it with
SIGKILL after a random time, opens the store, and compares: every acknowledged change must be there, and of
the one that was under way all or nothing. `Store.damages` (SQLite's integrity_check, every row's checksum, the
index of captions) must find nothing.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import apsw
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store import Row, Store

DIM, FILES, KILLS_PER_STORE, LONGEST_S = 32, 400, 500, 0.02
_CHANGE = struct.Struct("<iii")  # 0 begun or 1 committed, file, version (0: removed)


def vector_for(file: int, version: int) -> NDArray[np.float32]:
    """Return the vector `(DIM,)` that `version` of `file` has."""
    vector = np.random.default_rng([file, version]).normal(size=DIM).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def row_for(file: int, version: int) -> Row:
    """Return the row that `version` of `file` has."""
    return Row(
        path=f"/p/{file}",
        sha256=struct.pack("<ii24x", file, version),
        size_bytes=version,
        mtime_ns=version,
        version=version,
        vector=vector_for(file, version),
        caption=f"number {file} in version {version} " + "word " * (file % 50),
        confidence=0.5,
    )


def write_until_killed(path: Path, pipe: int, expected: dict[int, int], seed: int) -> None:
    """Change random files for ever, reporting each change before and after."""
    numbers = random.Random(seed)
    with Store.open(path, model_version="v", dim=DIM) as store:
        while True:
            file = numbers.randrange(FILES)
            version = 0 if expected.get(file) and numbers.random() < 0.2 else max(expected.values(), default=0) + 1
            os.write(pipe, _CHANGE.pack(0, file, version))
            if version:
                store.write([row_for(file, version)])
            else:
                store.write(removed=[f"/p/{file}"])
            os.write(pipe, _CHANGE.pack(1, file, version))
            expected[file] = version


def kill_once(path: Path, expected: dict[int, int], numbers: random.Random) -> tuple[int, int] | None:
    """Let a child write, kill it, bring `expected` up to date, and return the change that was under way."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write_until_killed(path, writing, dict(expected), numbers.randrange(1 << 30))
        finally:
            os._exit(1)  # never back into the parent's code
    os.close(writing)
    # Some die while they open the store, most some changes later.
    wanted = numbers.choice((0, 1, 2, 3, 5, 8, 13))
    said = b""
    while len(said) < wanted * _CHANGE.size and select.select([reading], [], [], 10)[0]:
        said += os.read(reading, _CHANGE.size)
    time.sleep(numbers.uniform(0, LONGEST_S))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"the writer ended by itself: {status}")
    while part := os.read(reading, 1 << 16):
        said += part
    os.close(reading)
    under_way = None
    for done, file, version in _CHANGE.iter_unpack(said[: len(said) // _CHANGE.size * _CHANGE.size]):
        under_way = None if done else (file, version)
        if done:
            expected[file] = version
    return under_way


def compare(path: Path, expected: dict[int, int], under_way: tuple[int, int] | None) -> int:
    """Return how many acknowledged changes are not there; the one under way is settled in `expected`."""
    if not path.exists():
        return sum(1 for version in expected.values() if version)
    with Store.open(path, model_version="v", dim=DIM) as store:
        if damages := store.damages():
            raise SystemExit(f"damaged: {damages}")
        connection = apsw.Connection(str(path))
        rows = connection.execute(
            "SELECT f.file_id, f.version, e.vector FROM files f LEFT JOIN entries e ON e.file = f.id"
        ).fetchall()
        connection.close()
    found = {int(name.rpartition("/")[2]): (version, vector) for name, version, vector in rows}
    lost = 0
    for file in {*found, *expected}:
        version, vector = found.get(file, (0, b""))
        if under_way is not None and (file, version) == under_way:
            expected[file] = version
        if version != expected.get(file, 0) or (version and vector != vector_for(file, version).tobytes()):
            lost += 1
    return lost


def kill(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` writers and return the counts."""
    numbers = random.Random(seed)
    lost = under_way_there = done = acknowledged = 0
    while done < kills:
        path, expected = folder / f"{done}.sqlite", dict[int, int]()
        for _ in range(min(KILLS_PER_STORE, kills - done)):
            before = max(expected.values(), default=0)
            under_way = kill_once(path, expected, numbers)
            acknowledged += max(expected.values(), default=0) - before
            lost += compare(path, expected, under_way)
            under_way_there += under_way is not None and expected.get(under_way[0]) == under_way[1]
            done += 1
            if done % 500 == 0:
                print(f"{done} kills, {lost} lost", file=sys.stderr, flush=True)
        for left in folder.iterdir():
            left.unlink()
    return {
        "kills": done,
        "acknowledged writes": acknowledged,
        "lost": lost,
        "damaged stores": 0,  # a damaged one ends the run
        "under way and kept": under_way_there,
    }


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-store-kills-"))
    try:
        print(json.dumps(kill(folder, options.kills, options.seed)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
