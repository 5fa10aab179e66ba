"""Reads every picture in tar files of hostile and odd pictures, in a decoding process and in this one.

Run: python -m benchmarks.hostile_pictures pillow_tests.tar heif.tar exif_orientation.tar

Beside each answer stands what Pillow (with pillow-heif) does with the file when it is asked to open and load
it. Each file must end as pixels or as one PictureError. Pixels of both ways must be equal. What Pillow reads
and we refuse is listed with the reason.
"""

import argparse
import io
import sys
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import PictureWorker

SPEC = PreprocessSpec(
    height_px=96, width_px=96, formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every file in `archive`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()


def reference(data: bytes) -> str:
    """Return the format that Pillow reads, or the name of the error with which it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return str(image.format)
    except Exception as error:  # noqa: BLE001 - it raises nearly everything
        return f"- {type(error).__name__}"


def answer(prepare: Callable[[bytes, PreprocessSpec], np.ndarray], data: bytes) -> tuple[str, object, float]:
    """Return `read` or the kind of refusal, pixels or the error, and milliseconds."""
    began = time.perf_counter()
    result: object
    try:
        result = prepare(data, SPEC)
        kind = "read"
    except PictureError as error:
        result, kind = error, error.kind
    except Exception as error:  # noqa: BLE001 - this is what must not be
        result, kind = error, f"UNTYPED {type(error).__name__}"
    return kind, result, 1000 * (time.perf_counter() - began)


def look(archive: Path, worker: PictureWorker, *, in_process: bool) -> Counter[str]:
    """Print what happened to the files of `archive`, and return the counts."""
    counts, slowest, refused = Counter[str](), (0.0, ""), list[str]()
    for name, data in members(archive):
        worker.start()
        kind, result, took_ms = answer(worker.prepare, data)
        slowest = max(slowest, (took_ms, name))
        counts[f"worker: {kind}"] += 1
        if in_process:
            print(f"\r{name[-70:]:70}", end="", file=sys.stderr, flush=True)  # a crash shows where
            own_kind, own, _ = answer(preprocess, data)
            counts[f"in process: {own_kind}"] += 1
            if kind == own_kind == "read" and not np.array_equal(np.asarray(result), np.asarray(own)):
                counts["DIFFERENT PIXELS"] += 1
                print(f"\ndifferent pixels: {name}")
            elif kind != own_kind:
                counts["another answer in process"] += 1
                print(f"\nworker {kind}, in process {own_kind}: {name}: {result}")
        theirs = reference(data)
        counts["Pillow reads" if theirs[0] != "-" else "Pillow refuses"] += 1
        if theirs[0] != "-" and kind != "read":
            counts["Pillow reads, refused here"] += 1
            refused.append(f"{kind:17} {theirs:9} {name}: {getattr(result, 'found', result)}")
        if theirs[0] == "-" and kind == "read":
            counts["read here, Pillow refuses"] += 1
            print(f"\nread, Pillow refuses ({theirs}): {name}")
    print(f"\n\n{archive.name}: {sum(n for k, n in counts.items() if k.startswith('worker'))} files")
    for name, number in sorted(counts.items()):
        print(f"  {number:5} {name}")
    print(f"  slowest in the worker: {slowest[0]:.0f} ms, {slowest[1]}\n  Pillow reads, refused here:")
    print("\n".join(f"    {line}" for line in sorted(refused)))
    return counts


def main() -> None:
    """Print the tables; exit code 1 where something untyped, different or crashed was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path, nargs="+")
    parser.add_argument("--worker-only", action="store_true")
    options = parser.parse_args()
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        print("pillow-heif is not installed: HEIF files are refused", file=sys.stderr)
    total = Counter[str]()
    with PictureWorker() as worker:
        for archive in options.archives:
            total += look(archive, worker, in_process=not options.worker_only)
        print(f"decoding processes started: {worker.starts}")
    bad = [name for name in total if "UNTYPED" in name or "DIFFERENT" in name or "crashed" in name]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
