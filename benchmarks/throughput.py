"""Images a second against what people use today: same weights, same pictures, one run, in turns.

    python -m benchmarks.throughput --peers PYTHON [--size 500px|12mp] [--count 192] [--rounds 3] [--work DIR]

`--peers` is the Python of an environment with fastembed (`pip install fastembed==0.9.1 onnxruntime==1.31.1`); open_clip
and torch are taken from there or from this one. Each contender is a process of its own that loads, warms up and then
makes a pass over all pictures when it is its turn; the median of the rounds counts. The bound is what the cost of
preprocessing and of the graph, each measured alone on one thread in the same turns, allows when it is divided over the
cores. 12-megapixel pictures are also embedded through a bundle whose spec allows scaled decoding.
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
from typing import Any, Final

import numpy as np

from benchmarks.phone_bundle import write_models
from benchmarks.photographs import SIZES, write_photographs
from pocketlens.core.bundle import load_bundle
from pocketlens.core.preprocess import preprocess
from pocketlens.runtime.pipeline import available_cores

_SCRIPT: Final = Path(__file__).with_name("peers_images.py")
_BOUND_SAMPLE: Final = {"500px": 48, "12mp": 4}


class Contender:
    """A process that embeds the pictures when it is told to."""

    def __init__(self, python: str, name: str, model: Path, listed: Path) -> None:
        command = [python, str(_SCRIPT), name, str(model), str(listed)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.passes: list[dict[str, float]] = []
        self.loaded = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, why = self._process.communicate()
            raise SystemExit(f"{' '.join(self._process.args)} failed:\n{why[-2000:]}")  # type: ignore[arg-type]
        return dict(json.loads(line))

    def run(self) -> None:
        """Make one pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.passes.append(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    @property
    def rate(self) -> float:
        """Median images a second."""
        return statistics.median(one["images_per_s"] for one in self.passes)

    @property
    def cpu_ms(self) -> float:
        """Median processor milliseconds of a picture, all threads together: other work on the machine hardly counts."""
        return statistics.median(one["cpu_ms"] for one in self.passes)

    @property
    def peak_mib(self) -> float:
        """Largest resident set."""
        return max(one["peak_mib"] for one in self.passes)


class Bound:
    """What the two steps cost alone, each on one thread."""

    def __init__(self, bundle: Path, paths: Sequence[str]) -> None:
        import onnxruntime

        opened = load_bundle(bundle)
        self._spec, self._paths = opened.manifest.preprocess, paths
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(bundle / "graphs/onnx-fp32/image_encoder.onnx"), options)
        self._pixels = np.stack([preprocess(paths[at % len(paths)], self._spec) for at in range(8)])
        self.decode_ms: list[float] = []
        self.model_ms: list[float] = []

    def run(self) -> None:
        """Measure both once."""
        began = time.perf_counter()
        for path in self._paths:
            preprocess(path, self._spec)
        self.decode_ms.append((time.perf_counter() - began) * 1000 / len(self._paths))
        began = time.perf_counter()
        for _ in range(5):
            self._session.run(None, {"pixels": self._pixels})
        self.model_ms.append((time.perf_counter() - began) * 1000 / 40)

    @property
    def rate(self) -> float:
        """Images a second that the medians allow on all cores."""
        return available_cores() * 1000 / (statistics.median(self.decode_ms) + statistics.median(self.model_ms))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--size", choices=sorted(SIZES), default="500px")
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of contenders; all by default")
    parser.add_argument("--work", type=Path, help="keeps models and pictures for the next time")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        bundle, plain = write_models(work / "models")
        scaled, _ = write_models(work / "models", jpeg_scaling="dct")
        distinct = 4 if options.size == "12mp" else min(options.count, 200)
        paths = write_photographs(work / "pictures", options.size, options.count, distinct=distinct)
        listed = Path(scratch, "pictures.txt")
        listed.write_text("\n".join(paths))
        contenders = _contenders(options, bundle, scaled, plain, listed)
        bounds = {
            name: Bound(folder, paths[: _BOUND_SAMPLE.get(options.size, 48)])
            for name, folder in (("pocketlens", bundle), ("pocketlens, scaled decoding", scaled))
            if name in contenders
        }
        for _ in range(options.rounds):
            for one in (*contenders.values(), *bounds.values()):
                one.run()
        for one in contenders.values():
            one.close()
    _print(options.size, contenders, bounds)
    return 0


def _contenders(
    options: argparse.Namespace, bundle: Path, scaled: Path, plain: Path, listed: Path
) -> dict[str, Contender]:
    has_torch = subprocess.run([options.peers, "-c", "import open_clip"], check=False, capture_output=True)
    torch_python = options.peers if has_torch.returncode == 0 else sys.executable
    plans = {
        "pocketlens": (sys.executable, "pocketlens", bundle),
        "pocketlens, scaled decoding": (sys.executable, "pocketlens", scaled),
        "fastembed": (options.peers, "fastembed", plain),
        "fastembed, a process a core": (options.peers, "fastembed_parallel", plain),
        "open_clip transform + torch": (torch_python, "open_clip", plain),
    }
    if options.size != "12mp":
        del plans["pocketlens, scaled decoding"]  # the rule decodes small pictures in full
    wanted = {name: plan for name, plan in plans.items() if not options.only or name in options.only}
    return {name: Contender(python, script, model, listed) for name, (python, script, model) in wanted.items()}


def _print(size: str, contenders: dict[str, Contender], bounds: dict[str, Bound]) -> None:
    width, height = SIZES[size]
    print(f"{width} x {height} JPEG, {available_cores()} cores")
    print(f"{'':<30}{'images/s':>10}{'passes':>24}{'CPU ms':>9}{'peak MiB':>10}{'x fastembed':>13}{'of bound':>10}")
    fastembed = contenders.get("fastembed")
    for name, one in contenders.items():
        passes = " ".join(f"{each['images_per_s']:.1f}" for each in one.passes)
        ratio = f"{one.rate / fastembed.rate:.2f}" if fastembed else ""
        share = f"{one.rate / bounds[name].rate:.1%}" if name in bounds else ""
        cpu = f"{one.cpu_ms:.2f}" if one.cpu_ms > 1 else "?"  # of children that go on nothing is known
        print(f"{name:<30}{one.rate:>10.1f}{passes:>24}{cpu:>9}{one.peak_mib:>10.0f}{ratio:>13}{share:>10}")
    torch = contenders.get("open_clip transform + torch")
    if torch and "pocketlens" in contenders:
        print(f"pocketlens / open_clip transform + torch: {contenders['pocketlens'].rate / torch.rate:.2f}")
    for name, bound in bounds.items():
        decode, model = statistics.median(bound.decode_ms), statistics.median(bound.model_ms)
        print(f"{name}: preprocessing {decode:.2f} ms + graph {model:.2f} ms on one thread: {bound.rate:.1f} images/s")


if __name__ == "__main__":
    raise SystemExit(main())
