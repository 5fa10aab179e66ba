"""From starting Python to the first embedding on stdout, and the memory that it took: this project and fastembed.

    python -m benchmarks.cold_start --peers PYTHON [--rounds 7] [--work DIR]

Every measurement is a fresh process, in turns; the files are in the page cache. The median counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.phone_bundle import write_models
from benchmarks.photographs import write_photographs

_TAIL: Final = """
import pathlib
status = pathlib.Path("/proc/self/status").read_text()
print(len(vector), int(status.partition("VmHWM:")[2].split()[0]))
"""
_POCKETLENS: Final = """
import sys, pocketlens
vector = pocketlens.load(sys.argv[1]).embed_image(sys.argv[2])
"""
_FASTEMBED: Final = """
import sys
from fastembed import ImageEmbedding
model = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=sys.argv[1])
vector = next(iter(model.embed([sys.argv[2]])))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, help="keeps models and pictures for the next time")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        bundle, plain = write_models(work / "models")
        picture = write_photographs(work / "pictures", "500px", 192, distinct=192)[0]
        commands = {
            "pocketlens": [sys.executable, "-c", _POCKETLENS + _TAIL, str(bundle), picture],
            "fastembed": [options.peers, "-c", _FASTEMBED + _TAIL, str(plain), picture],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        peak_mib: dict[str, float] = {}
        for _ in range(options.rounds + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seconds[name].append(time.perf_counter() - began)
                peak_mib[name] = int(said.split()[-1]) / 1024
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one fills caches
    print(f"{'':<12}{'seconds':>9}{'peak MiB':>10}")
    for name, median in medians.items():
        print(f"{name:<12}{median:>9.3f}{peak_mib[name]:>10.0f}")
    print(json.dumps({"ratio": round(medians["pocketlens"] / medians["fastembed"], 3)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
