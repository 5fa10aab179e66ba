"""Cuts the power while a store is written, over and over, and looks for what it had acknowledged.

Run: python -m benchmarks.power_cuts --cuts 2000

The disk is a SQLite VFS that keeps what was not synced apart (`tests/runtime/faulty_disk.py`). At a random
operation it stops; of the unsynced writes any 512-byte sectors are kept, in any combination, and the store is
opened again on the real file system. Every acknowledged change must be there and `Store.damages` find nothing.
With `--lying` the disk acknowledges syncs without doing them: then changes must be lost, or this proves nothing.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.store_kills import DIM, FILES, compare, row_for
from pocketlens.core.errors import PocketlensError
from pocketlens.runtime.store import Store
from tests.runtime.faulty_disk import faulty_disk

CUTS_PER_STORE, LONGEST_OPERATIONS = 20, 300


def cut_once(path: Path, expected: dict[int, int], numbers: random.Random, *, lying: bool) -> tuple[int, int] | None:
    """Write until the power goes; bring `expected` up to date and return the change that was under way."""
    under_way: tuple[int, int] | None = None
    with faulty_disk() as disk:
        disk.lies = lying
        disk.fails_at = numbers.randrange(1, LONGEST_OPERATIONS)
        store = None
        try:
            store = Store.open(path, model_version="v", dim=DIM)
            while True:
                file = numbers.randrange(FILES)
                removes = expected.get(file) and numbers.random() < 0.2
                version = 0 if removes else max(expected.values(), default=0) + 1
                under_way = (file, version)
                if version:
                    store.write([row_for(file, version)])
                else:
                    store.write(removed=[f"/p/{file}"])
                expected[file], under_way = version, None
                if numbers.random() < 0.05:
                    store.compact()
        except PocketlensError:
            pass  # the power is gone
        finally:
            if store is not None:
                store.close()
        disk.lose_power(numbers)
    # The index of the log lives in memory, whatever file it is shown as.
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    return under_way


def cut(folder: Path, cuts: int, seed: int, *, lying: bool = False) -> dict[str, int]:
    """Cut the power `cuts` times and return the counts."""
    numbers = random.Random(seed)
    lost = damaged = acknowledged = done = 0
    while done < cuts:
        path, expected = folder / f"{done}.sqlite", dict[int, int]()
        for _ in range(min(CUTS_PER_STORE, cuts - done)):
            before = dict(expected)
            under_way = cut_once(path, expected, numbers, lying=lying)
            acknowledged += sum(expected[file] != before.get(file) for file in expected)
            done += 1
            try:
                lost += compare(path, expected, under_way)
            except (SystemExit, PocketlensError) as error:
                damaged += 1
                if not lying:
                    print(error, file=sys.stderr)
                break
            if done % 200 == 0:
                print(f"{done} cuts, {lost} lost", file=sys.stderr, flush=True)
        for left in folder.iterdir():
            left.unlink()
    return {"cuts": done, "acknowledged changes": acknowledged, "lost": lost, "damaged stores": damaged}


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lying", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-power-cuts-"))
    try:
        print(json.dumps(cut(folder, options.cuts, options.seed, lying=options.lying)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
