"""Measures the decoding process: what it costs beside decoding in place, and whether memory stays flat.

Run: python -m benchmarks.picture_worker [--leak 10000]

Pictures are generated: photographs of 500 x 375 and 4,032 x 3,024 pixels as JPEG, and small ones of all formats.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.mutations import memory_peak_bytes, originals, photograph, saved
from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import PicturePool, PictureWorker

SPEC = PreprocessSpec(
    height_px=224, width_px=224, formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
)


def median_ms(prepare: Callable[[bytes, PreprocessSpec], NDArray[np.uint8]], data: bytes, times: int) -> float:
    """Return the median milliseconds of one call."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        prepare(data, SPEC)
        took.append(1000 * (time.perf_counter() - began))
    return sorted(took)[times // 2]


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has now, 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="ascii")) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def speed(pool: PicturePool) -> None:
    """Print milliseconds in this process and in a worker, and pictures a second of the pool."""
    rng = np.random.default_rng(0)
    with PictureWorker() as worker:
        began = time.perf_counter()
        worker.start()
        print(f"start of a process: {1000 * (time.perf_counter() - began):.0f} ms")
        for width, height, times in ((500, 375, 200), (4032, 3024, 11)):
            image = photograph(rng, height // 4, width // 4).resize((width, height), Image.Resampling.BICUBIC)
            data = saved(image, "JPEG", quality=90)
            own, far = median_ms(preprocess, data, times), median_ms(worker.prepare, data, times)
            count = times * 2
            list(pool.prepare_all([data] * 4, SPEC))  # both processes are up
            began = time.perf_counter()
            for _ in pool.prepare_all((data for _ in range(count)), SPEC):
                pass
            rate = count / (time.perf_counter() - began)
            print(
                f"{width} x {height}, {len(data) / 1000:.0f} kB: in process {own:.2f} ms, worker {far:.2f} ms "
                f"({far / own:.3f} x), {len(pool.workers)} workers {rate:.1f} pictures/s (in process {1000 / own:.1f})"
            )


def leaks(count: int) -> None:
    """Print the memory of worker and host over `count` pictures, of which one in eight is damaged."""
    files = [data for kind in originals().values() for data in kind]
    files += [saved(photograph(np.random.default_rng(1), 900, 1200), "JPEG", quality=90)]
    files += [data[: len(data) * 2 // 3] for data in files[::7]]
    read = 0
    with PictureWorker() as worker:
        worker.start()
        for number in range(count + 1):
            if number in {count // 100, count // 10, count // 4, count // 2, 3 * count // 4, count}:
                own = resident_bytes(os.getpid())
                far = resident_bytes(worker.pid or 0)
                print(f"after {number:6,} pictures: worker {far / 10**6:.1f} MB, host {own / 10**6:.1f} MB", flush=True)
            try:
                worker.prepare(files[number % len(files)], SPEC)
                read += 1
            except PictureError:
                pass
        peak = memory_peak_bytes(worker.pid)
        print(f"{read:,} read, {worker.starts} start(s), worker's peak {peak / 10**6:.1f} MB")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leak", type=int, default=0, help="watch the memory over so many pictures instead")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    if options.leak:
        leaks(options.leak)
        return
    with PicturePool(options.workers) as pool:
        speed(pool)


if __name__ == "__main__":
    main()
