"""How long `index_folder` takes over a folder in which nothing changed.

Run: python -m benchmarks.reindex --bundle BUNDLE --files 100000

The files are empty but for a number each and their rows are written to the store directly: what is measured is the
second run, which has to look at every file and at no picture.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from pocketlens.runtime import Row, Store, index_folder, load

FILES_IN_FOLDER = 500


def fill(root: Path, store: Store, files: int, dim: int) -> None:
    """Make `files` files below `root` and their rows."""
    table = np.random.default_rng(0).normal(size=(FILES_IN_FOLDER, dim)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    for first in range(0, files, FILES_IN_FOLDER):
        folder = root / f"{first // FILES_IN_FOLDER:04}"
        folder.mkdir(parents=True)
        rows = []
        for number in range(first, min(files, first + FILES_IN_FOLDER)):
            path = folder / f"{number}.jpg"
            content = str(number).encode()
            path.write_bytes(content)
            status = path.stat()
            rows.append(
                Row(
                    path=str(path),
                    sha256=hashlib.sha256(content).digest(),
                    size_bytes=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    vector=table[number - first],
                    caption=f"number {number}",
                    confidence=0.5,
                )
            )
        store.write(rows)


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="keep the folder here, and use it again")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="pocketlens-reindex-"))
    work.mkdir(exist_ok=True)
    root = work / "pictures"
    lens = load(options.bundle, threads=1)
    try:
        # Without an index: that it takes long to build is measured by benchmarks.search.
        with Store.open(
            work / "s.sqlite", model_version=lens.model_version, dim=lens.dim, exact_rows=options.files
        ) as store:
            if not root.exists():
                fill(root, store, options.files, lens.dim)
            began = time.perf_counter()
            report = index_folder(lens, store, root)
            whole_s = time.perf_counter() - began
            one = root / "0000" / "0.jpg"
            began = time.perf_counter()
            index_folder(lens, store, root, only=[str(one)])
            one_s = time.perf_counter() - began
        print(
            json.dumps(
                {
                    "files": options.files,
                    "unchanged": report.unchanged,
                    "seconds": round(whole_s, 3),
                    "seconds_for_one_file_that_was_told_of": round(one_s, 4),
                }
            )
        )
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
