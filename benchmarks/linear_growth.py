"""Cost and memory of `pocketlens embed DIR --out` for ten, a hundred times as many pictures: a table and a plot.

    python -m benchmarks.linear_growth --bundle BUNDLE [--counts 1000 10000 100000] [--plot FILE.png] [--work DIR]

The folders hold hard links to 200 small pictures, a thousand in a folder. Each run is a process of its own; its wall
time, CPU time and largest resident set are shown, and the memory a picture that the largest run took more than the
smallest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.photographs import write_photographs

_RUN: Final = """
import json, os, pathlib, sys, time
from pocketlens.runtime import load
from pocketlens.runtime.vectors.sidecar import Header
from pocketlens.runtime.vectors.writing import embed_here, write_vectors
lens = load(sys.argv[1])
header = Header(model_version=lens.model_version, dim=lens.dim, precision=lens.precision)
began = time.perf_counter()
done = write_vectors(sys.argv[2], pathlib.Path(sys.argv[3]), header, embed_here(lens))
status = pathlib.Path("/proc/self/status").read_text()
used = os.times()
print(json.dumps({
    "rows": done.rows,
    "seconds": time.perf_counter() - began,
    "cpu_s": used.user + used.system,
    "peak_mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and plot; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--work", type=Path, help="keeps the pictures for the next time")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        for count in options.counts:
            folder = _folder(work, count)
            command = [sys.executable, "-c", _RUN, str(options.bundle), str(folder), str(Path(scratch, f"{count}.npy"))]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(dict(json.loads(said)))
            one = rows[-1]
            each = 1000 * one["seconds"] / count
            print(
                f"{count:>9,} pictures{one['seconds']:>10.1f} s{each:>8.3f} ms each"
                f"{1000 * one['cpu_s'] / count:>8.3f} CPU ms each{one['peak_mib']:>8.1f} MiB",
                flush=True,
            )
    extra = 2**20 * (rows[-1]["peak_mib"] - rows[0]["peak_mib"]) / (options.counts[-1] - options.counts[0])
    print(f"memory a picture more: {extra:.0f} bytes")
    if options.plot:
        _plot(options.plot, options.counts, rows)
    return 0


def _folder(work: Path, count: int) -> Path:
    drawn = write_photographs(work / "drawn", "thumbnail", 200)
    folder = work / f"linked-{count}"
    for index in range(count):
        path = folder / f"{index // 1000:04}" / f"{index:07}.jpg"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(drawn[index % len(drawn)], path)
    return folder


def _plot(path: Path, counts: Sequence[int], rows: Sequence[dict[str, float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    time.loglog(counts, [row["cpu_s"] for row in rows], "o-", label="CPU seconds")
    time.loglog(counts, [row["seconds"] for row in rows], "s--", label="wall seconds")
    time.set_xlabel("pictures")
    time.legend(frameon=False)
    memory.semilogx(counts, [row["peak_mib"] for row in rows], "o-")
    memory.set_ylim(0)
    memory.set_xlabel("pictures")
    memory.set_ylabel("peak MiB")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())
