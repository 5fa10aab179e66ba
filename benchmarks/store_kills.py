"""Kills a process that writes to a store, over and over, and looks for what it had acknowledged.

Run: python -m benchmarks.store_kills --kills 10000 [--lists]

A child writes, replaces and removes rows and says after each commit which one. The parent ends it with
SIGKILL after a random time, opens the store, and compares: every acknowledged change must be there, and of
the one that was under way all or nothing. `Store.damages` (SQLite's integrity_check, every row's checksum, the
index of captions) must find nothing.

With `--lists` the store has 4,000 rows in lists (IVF-PQ). The child also searches, and erases files, for which the
lists are overwritten, removed and built anew: one kill in six waits for up to a second, so that many of them fall into
that. After each kill the parent searches by lists: an answer that is not as acknowledged is a wrong one.
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
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from benchmarks import listed_rows
from benchmarks.listed_rows import clustered_vector, has_lists, opened, require_lists, searched
from pocketlens.runtime.store import Row, Store

DIM, FILES, KILLS_PER_STORE, LONGEST_S = 64, 400, 500, 0.02
ERASED_SHARE = 0.05
_WITH_LISTS_S = (LONGEST_S, LONGEST_S, LONGEST_S, LONGEST_S, LONGEST_S, 1.0)
ANSWERS = ("index gone", "by lists", "wrong answers", "nearest", "nearest found")
_CHANGE = struct.Struct("<iii")  # 0 begun or 1 committed, file, version (0: removed)


def vector_for(file: int, version: int) -> NDArray[np.float32]:
    """Return the vector `(DIM,)` that `version` of `file` has."""
    return clustered_vector(file, version, DIM)


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


def filled_with_lists(path: Path) -> dict[int, int]:
    """Make a store whose rows lie in lists, and return the version of each file."""
    with opened(path, DIM, lists=True) as store:
        store.write([row_for(file, 1) for file in range(listed_rows.ROWS)])
        store.prepare()
        require_lists(has_lists(store), 1)
    return dict.fromkeys(range(listed_rows.ROWS), 1)


def next_change(expected: dict[int, int], numbers: random.Random, *, lists: bool) -> tuple[int, int, bool]:
    """Return the file that is changed next, its version then (0: none), and whether it is erased."""
    file = numbers.randrange(listed_rows.ROWS if lists else FILES)
    removes = bool(expected.get(file)) and numbers.random() < 0.2
    erases = lists and removes and numbers.random() < ERASED_SHARE / 0.2
    return file, 0 if removes else max(expected.values(), default=0) + 1, erases


def make_change(store: Store, file: int, version: int, *, erases: bool) -> None:
    """Do what `next_change` said."""
    if erases:
        store.erase(file=f"/p/{file}")
    elif version:
        store.write([row_for(file, version)])
    else:
        store.write(removed=[f"/p/{file}"])


def write_until_killed(path: Path, pipe: int, expected: dict[int, int], seed: int, *, lists: bool) -> None:
    """Change random files for ever, reporting each change before and after."""
    numbers = random.Random(seed)
    with opened(path, DIM, lists=lists) as store:
        while True:
            file, version, erases = next_change(expected, numbers, lists=lists)
            os.write(pipe, _CHANGE.pack(0, file, version))
            make_change(store, file, version, erases=erases)
            os.write(pipe, _CHANGE.pack(1, file, version))
            expected[file] = version
            if lists:
                store.search(vector_for(file, version))


def kill_once(
    path: Path, expected: dict[int, int], numbers: random.Random, *, lists: bool = False
) -> tuple[int, int] | None:
    """Let a child write, kill it, bring `expected` up to date, and return the change that was under way."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write_until_killed(path, writing, dict(expected), numbers.randrange(1 << 30), lists=lists)
        finally:
            os._exit(1)  # never back into the parent's code
    os.close(writing)
    # Some die while they open the store, most some changes later.
    wanted = numbers.choice((0, 1, 2, 3, 5, 8, 13))
    said = b""
    while len(said) < wanted * _CHANGE.size and select.select([reading], [], [], 10)[0]:
        said += os.read(reading, _CHANGE.size)
    time.sleep(numbers.uniform(0, numbers.choice(_WITH_LISTS_S) if lists else LONGEST_S))
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
        rows: list[Any] = connection.execute(
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


def kill(folder: Path, kills: int, seed: int, *, lists: bool = False) -> dict[str, int]:
    """Kill `kills` writers and return the counts."""
    numbers, answers = random.Random(seed), Counter[str]()
    lost = under_way_there = done = acknowledged = 0
    per_store = KILLS_PER_STORE // 5 if lists else KILLS_PER_STORE  # or too few rows would be left for the lists
    while done < kills:
        path = folder / f"{done}.sqlite"
        expected = filled_with_lists(path) if lists else {}
        for _ in range(min(per_store, kills - done)):
            before = max(expected.values(), default=0)
            under_way = kill_once(path, expected, numbers, lists=lists)
            acknowledged += max(expected.values(), default=0) - before
            lost += compare(path, expected, under_way)
            if lists:
                answers += searched(path, DIM, expected, numbers)
            under_way_there += under_way is not None and expected.get(under_way[0]) == under_way[1]
            done += 1
            if done % (100 if lists else 500) == 0:
                print(f"{done} kills, {lost} lost {dict(answers)}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
        folder.mkdir()
    return {
        "kills": done,
        "acknowledged writes": acknowledged,
        "lost": lost,
        "damaged stores": 0,  # a damaged one ends the run
        "under way and kept": under_way_there,
        **({name: answers[name] for name in ANSWERS} if lists else {}),
    }


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lists", action="store_true", help="with an IVF-PQ index; needs FAISS")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-store-kills-"))
    try:
        counts = kill(folder, options.kills, options.seed, lists=options.lists)
        print(json.dumps(counts))
        if options.lists:
            require_lists(counts["by lists"], counts["kills"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
