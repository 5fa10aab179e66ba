"""Cuts the power while a store is written, over and over, and looks for what it had acknowledged.

Run: python -m benchmarks.power_cuts --cuts 2000 [--lists]

The disk is a SQLite VFS that keeps what was not synced apart (`tests/runtime/faulty_disk.py`). At a random
operation it stops; of the unsynced writes any 512-byte sectors are kept, in any combination, and the store is
opened again on the real file system. Every acknowledged change must be there and `Store.damages` find nothing.
With `--lying` the disk acknowledges syncs without doing them: then changes must be lost, or this proves nothing.

With `--lists` the store has 4,000 rows in lists (IVF-PQ), is searched, and files are erased, for which the lists are
built anew. The files of the index are not written through SQLite: so after every second cut one of them is cut short or
ends in zeros, and the store has to notice. Then it is searched by lists: an answer must be as acknowledged.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.listed_rows import opened, require_lists, searched, tear_index
from benchmarks.store_kills import (
    ANSWERS,
    DIM,
    compare,
    filled_with_lists,
    make_change,
    next_change,
    vector_for,
)
from pocketlens.core.errors import PocketlensError
from tests.runtime.faulty_disk import faulty_disk

CUTS_PER_STORE, LONGEST_OPERATIONS = 20, 300


def cut_once(
    path: Path, expected: dict[int, int], numbers: random.Random, *, lying: bool, lists: bool = False
) -> tuple[int, int] | None:
    """Write until the power goes; bring `expected` up to date and return the change that was under way."""
    under_way: tuple[int, int] | None = None
    with faulty_disk() as disk:
        disk.lies = lying
        disk.fails_at = numbers.randrange(1, LONGEST_OPERATIONS)
        store = None
        try:
            store = opened(path, DIM, lists=lists)
            while True:
                file, version, erases = next_change(expected, numbers, lists=lists)
                under_way = (file, version)
                make_change(store, file, version, erases=erases)
                expected[file], under_way = version, None
                if lists:
                    store.search(vector_for(file, version))
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


def cut(folder: Path, cuts: int, seed: int, *, lying: bool = False, lists: bool = False) -> dict[str, int]:
    """Cut the power `cuts` times and return the counts."""
    numbers, answers = random.Random(seed), Counter[str]()
    lost = damaged = acknowledged = done = 0
    while done < cuts:
        path = folder / f"{done}.sqlite"
        expected = filled_with_lists(path) if lists else {}
        for _ in range(min(CUTS_PER_STORE, cuts - done)):
            before = dict(expected)
            under_way = cut_once(path, expected, numbers, lying=lying, lists=lists)
            if lists and done % 2:
                answers["indexes torn"] += tear_index(path, numbers)
            acknowledged += sum(expected[file] != before.get(file) for file in expected)
            done += 1
            try:
                lost += compare(path, expected, under_way)
                if lists:
                    answers += searched(path, DIM, expected, numbers)
            except (SystemExit, PocketlensError) as error:
                damaged += 1
                if not lying:
                    print(error, file=sys.stderr)
                break
            if done % (50 if lists else 200) == 0:
                print(f"{done} cuts, {lost} lost {dict(answers)}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
        folder.mkdir()
    counts = {"cuts": done, "acknowledged changes": acknowledged, "lost": lost, "damaged stores": damaged}
    return counts | ({name: answers[name] for name in ("indexes torn", *ANSWERS)} if lists else {})


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lying", action="store_true")
    parser.add_argument("--lists", action="store_true", help="with an IVF-PQ index; needs FAISS")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-power-cuts-"))
    try:
        counts = cut(folder, options.cuts, options.seed, lying=options.lying, lists=options.lists)
        print(json.dumps(counts))
        if options.lists and not options.lying:
            require_lists(counts["by lists"], counts["cuts"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
