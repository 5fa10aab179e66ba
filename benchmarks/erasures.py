"""Erases files one by one and looks for what is left of them.

Run: python -m benchmarks.erasures --erasures 1000 [--indexed | --lists]

A store is filled in small batches, some files are replaced and some removed, so that its pages have a history.
Then one file after the other is erased. After each, every file in the store's folder is searched, by this program and
not by the store, for three pieces of the erased vector in the form that it was stored in and in fp32, fp16 and int8,
for the caption, and for a word that only this caption had.

With `--indexed` there is a graph that has to forget, too, built again after every 100th erasure. With `--lists` the
store has 4,000 rows or more, in clusters, and lists (IVF-PQ), built again after each erasure.
"""

import argparse
import json
import mmap
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.listed_rows import ROWS, clustered_vector, has_lists, require_lists
from pocketlens.runtime.store import Dtype, Row, Store
from pocketlens.runtime.store.encoding import encode

DIM, BATCH, PIECE_BYTES = 256, 7, 16
LISTED_DIM = 64  # lists are built again 1,000 times: in a third of the time that 256 dimensions take
FORMS: tuple[Dtype, ...] = ("fp32", "fp16", "int8", "binary")


def row_for(number: int, version: int, *, lists: bool = False) -> Row:
    """Return a row with a word in its caption that no other row has; with `lists` its vector is one of a cluster."""
    vector = np.random.default_rng([number, version]).normal(size=DIM).astype(np.float32)
    if lists:
        vector = clustered_vector(number, version, LISTED_DIM)
    numbers = random.Random(number * 1000 + version)
    word = "".join(numbers.choices("bcdfghjklmnpqrtvwxz", k=14))
    return Row(
        path=f"/p/{number}",
        sha256=number.to_bytes(16, "little") + version.to_bytes(16, "little"),
        size_bytes=1,
        mtime_ns=1,
        version=version,
        vector=np.asarray(vector / np.linalg.norm(vector), dtype=np.float32),
        caption=f"{word} on a sofa" + " and another" * (number % 40),
        confidence=0.5,
    )


def pieces(row: Row) -> list[bytes]:
    """Return what must not be found after `row` is erased."""
    caption = row.caption or ""
    found = [caption.encode(), caption.split()[0].encode()]
    for form in FORMS:
        (blob,) = encode(row.vector[None], form)
        middle = len(blob) // 2
        found += [blob[8 : 8 + PIECE_BYTES], blob[middle : middle + PIECE_BYTES], blob[-PIECE_BYTES:]]
    return found


def residues(folder: Path, row: Row) -> int:
    """Return how many pieces of `row` any file below `folder` holds."""
    left = set[bytes]()
    wanted = pieces(row)
    for file in folder.rglob("*"):
        if not file.is_file() or not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            left.update(piece for piece in wanted if view.find(piece) >= 0)
    return len(left)


def erase(folder: Path, erasures: int, *, dtype: Dtype, indexed: bool, lists: bool = False) -> dict[str, object]:
    """Return the counts of `erasures` erasures from a store of twice as many files."""
    path, numbers = folder / "s.sqlite", random.Random(0)
    files = max(2 * erasures, ROWS) if lists else 2 * erasures
    versions = dict.fromkeys(range(files), 0)
    limit = erasures // 2 if indexed or lists else 20_000
    every = 1 if lists else 100
    dim = LISTED_DIM if lists else DIM
    with Store.open(path, model_version="v", dim=dim, dtype=dtype, exact_rows=limit, threads=1) as store:
        order = list(versions)
        numbers.shuffle(order)
        for first in range(0, len(order), BATCH):
            store.write([row_for(n, 0, lists=lists) for n in order[first : first + BATCH]])
        for number in numbers.sample(order, erasures // 3):
            versions[number] = 1
            store.write([row_for(number, 1, lists=lists)])
        store.prepare()
        before = sum(residues(folder, row_for(n, versions[n], lists=lists)) for n in order[:20])
        rewritten, left, times, from_lists = 0, 0, [], 0
        for done, number in enumerate(numbers.sample(order, erasures), 1):
            from_lists += has_lists(store)
            began = time.perf_counter()
            receipt = store.erase(file=f"/p/{number}", rebuild=(indexed or lists) and done % every == 0)
            times.append(time.perf_counter() - began)
            rewritten += receipt.rewritten
            left += residues(folder, row_for(number, versions[number], lists=lists))
            left += residues(folder, row_for(number, 0, lists=lists)) if versions[number] else 0
            if done % 100 == 0:
                print(f"{done} erasures, {left} residues", file=sys.stderr, flush=True)
        sound = not store.damages() and len(store) == files - erasures
    return {
        "erasures": erasures,
        "dtype": dtype,
        "index": "ivfpq" if lists else "hnsw" if indexed else None,
        "erased from lists": from_lists,
        "residues": left,
        "pieces found of 20 rows before": before,
        "files written anew": rewritten,
        "median_ms": round(1000 * statistics.median(times), 1),
        "sound afterwards": sound,
    }


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--erasures", type=int, default=1000)
    parser.add_argument("--dtype", choices=FORMS, default="fp32")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--indexed", action="store_true", help="with an HNSW index that has to forget, too")
    kinds.add_argument("--lists", action="store_true", help="with an IVF-PQ index; needs FAISS")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-erasures-"))
    try:
        counts = erase(folder, options.erasures, dtype=options.dtype, indexed=options.indexed, lists=options.lists)
        print(json.dumps(counts))
        if options.lists:
            require_lists(int(str(counts["erased from lists"])), options.erasures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
