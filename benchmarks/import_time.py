"""How much longer Python takes to start when it imports pocketlens.

Run: python -m benchmarks.import_time
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 15


def main() -> None:
    """Print the medians, and their difference, in milliseconds; the two are measured in turns."""
    times: dict[str, list[float]] = {"pass": [], "import pocketlens": [], "from pocketlens import load": []}
    for _ in range(ROUNDS):
        for code, seconds in times.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - began)
    bare = statistics.median(times["pass"])
    for code, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{code:<30} {1000 * median:7.1f} ms   {1000 * (median - bare):+7.1f} ms")


if __name__ == "__main__":
    main()
