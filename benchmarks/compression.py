"""What each way of compression buys: every method on the plane of accuracy, size and latency.

    python -m benchmarks.compression --work WORK --out DIR [--quantized STUDENT] [--arms whole,pruned,...]
    python -m benchmarks.compression --work WORK --out DIR --time      (a quiet machine, about a minute)
    python -m benchmarks.compression --work WORK --out DIR --table

WORK is the folder of a finished distillation (`data`, `reinforced`, `student`); nothing is written into it. The first
form trains what is missing, exports it and judges it on the test pictures; each row is appended to DIR/rows.jsonl, and
what is there is not done again. The second times all bundles in DIR in turns, into DIR/latency.json. The third prints
the tables and draws DIR/plane.png.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch

from benchmarks.compression_rows import Row, bundle_folder, bundle_of, judge, measure, opened
from benchmarks.compression_students import ARMS, Plan, open_bench, student_folder
from benchmarks.compression_table import draw, tables
from pocketlens.core.bundle import Latency, load_bundle
from pocketlens.export.recipe import Variant

_FULL: Final[tuple[Variant, ...]] = ("onnx-fp32", "onnx-int8", "executorch-fp32", "executorch-int8")
_INT8: Final[tuple[Variant, ...]] = ("onnx-int8", "executorch-int8")
_ONNX: Final[tuple[Variant, ...]] = ("onnx-fp32", "onnx-int8")
VARIANTS: Final = {
    "quantized": _INT8,
    **dict.fromkeys(("pruned-low-rate", "inherited", "scratch", "longer", "pruned-more"), _ONNX),
}
"""What is exported of an arm where it is not everything: lowering for ExecuTorch costs minutes."""
_TIMED_ONLY: Final = ("executorch-fp32",)  # the gates of the export hold its answers to those of onnx-fp32


def main(argv: Sequence[str] | None = None) -> int:
    """Train, export, judge, time or print, as the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a finished distillation")
    parser.add_argument("--out", type=Path, required=True, help="where the comparison is kept")
    parser.add_argument("--quantized", type=Path, help="a student that was trained for int8, instead of training one")
    parser.add_argument("--arms", default=",".join(("whole", *ARMS)), help="which students")
    parser.add_argument("--target", default="", help="only variants of this one: onnx, executorch")
    parser.add_argument("--steps", type=int, default=Plan().steps)
    parser.add_argument("--pictures", type=int, default=200, help="of the test split")
    parser.add_argument("--runs", type=int, default=40, help="timed captions of each")
    parser.add_argument("--time", action="store_true", help="only time the bundles in DIR")
    parser.add_argument("--table", action="store_true", help="only print what is in DIR")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.time:
        _time(options.out, options.runs)
    elif not options.table:
        _rows(options)
    latency = _latencies(options.out)
    rows = _known(options.out)
    if rows:
        print(tables(rows, latency))
        draw(rows, latency, options.out / "plane.png")
    return 0


def _rows(options: argparse.Namespace) -> None:
    arms = options.arms.split(",")
    unknown = sorted(set(arms) - {"whole", *ARMS})
    if unknown:
        raise SystemExit(f"--arms: expected some of whole, {', '.join(ARMS)}; found {', '.join(unknown)}")
    bench = open_bench(options.work, options.out, pictures=options.pictures)
    plan = Plan(steps=options.steps)
    done = {(row.arm, row.variant) for row in _known(options.out)}
    for arm in arms:
        every = [one for one in VARIANTS.get(arm, _FULL) if one.startswith(options.target)]
        variants = [one for one in every if (arm, one) not in done]
        if not variants:
            continue
        began = time.monotonic()
        print(arm, flush=True)
        given = arm == "quantized" and options.quantized
        folder = options.quantized if given else student_folder(bench, arm, plan)
        for variant in variants:
            target = variant.partition("-")[0]
            bundle = bundle_of(bench, arm, folder, [one for one in every if one.startswith(target)])
            row = judge(bench, arm, bundle, variant, answers=variant not in _TIMED_ONLY)
            with (options.out / "rows.jsonl").open("ab") as stream:
                stream.write(msgspec.json.encode(row) + b"\n")
            means = [sum(each) / len(each) if each else float("nan") for each in (row.image_hits, row.cider)]
            print(f"  {variant}: R@1 {means[0]:.3f}, CIDEr {means[1]:.1f}", flush=True)
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)


def _time(out: Path, runs: int) -> None:
    every = [(arm, variant) for arm in ("whole", *ARMS) for variant in VARIANTS.get(arm, _FULL)]
    bundles = {key: load_bundle(bundle_folder(out, *key)) for key in every if bundle_folder(out, *key).exists()}
    engines = {(arm, variant): opened(bundle, variant) for (arm, variant), bundle in bundles.items()}
    sides = {bundle.manifest.preprocess.height_px for bundle in bundles.values()}
    (out / "latency.json").write_bytes(msgspec.json.encode(measure(engines, max(sides), runs=runs)))


def _known(out: Path) -> list[Row]:
    path = out / "rows.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]


def _latencies(out: Path) -> dict[str, dict[str, Latency]]:
    path = out / "latency.json"
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Latency]])


if __name__ == "__main__":
    raise SystemExit(main())
