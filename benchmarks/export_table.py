"""Every target and precision of image towers of true size, and of `nano`: one line of JSON a cell, then a table.

::

    python -m benchmarks.export_table --results R.jsonl --work DIR [--photos PICTURES.tar]
        [--backbone MobileNetV2,nano] [--variant onnx-fp32,executorch]
    python -m benchmarks.export_table --results R.jsonl --work DIR --time [--backbone NAME]
    python -m benchmarks.export_table --results R.jsonl --print grid

The first form fills in what R.jsonl lacks, so that it can be stopped and started again at any time; a failure is a
cell like any other. Each job, the precisions of one target and graph, is a process of its own
(`benchmarks.export_cells`). `--time` times what can run here, all graphs of a model and role in turns, on one thread.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.export_cells import Cell, open_runner
from benchmarks.export_models import BACKBONES, MODELS, typical_feed
from benchmarks.export_rows import Timing, grid, rows
from pocketlens.core.bundle import ROLES, GraphRecord, Role
from pocketlens.export.latency import measure_in_turns
from pocketlens.export.quiet import quiet
from pocketlens.export.recipe import choose_variants, split_variant

_TIMED: Final = ("onnxruntime", "executorch")
_SHARING: Final = ("onnx", "coreml", "coremlstate", "tensorrt")
"""Targets whose precisions have work in common."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure every export target of image towers of true size.")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; read, and added to")
    parser.add_argument("--work", type=Path, help="graphs are written here, and timed from here")
    parser.add_argument("--photos", type=Path, help="an uncompressed tar of JPEG files; default: rendered scenes")
    parser.add_argument("--backbone", default=",".join(MODELS))
    parser.add_argument("--variant", default="all", help="targets or variants, separated by commas")
    parser.add_argument("--role", default=",".join(ROLES), help="graphs, separated by commas")
    parser.add_argument("--limit", type=int, default=1800, help="seconds of CPU time that one job may take")
    parser.add_argument("--runs", type=int, default=50, help="timed calls of each graph")
    parser.add_argument("--time", action="store_true", help="time what is there instead")
    parser.add_argument("--print", choices=("grid", "rows"), help="print a table instead: short, or with everything")
    chosen = parser.parse_args(arguments)
    lines = _read(chosen.results)
    if chosen.print:
        print(grid(lines) if chosen.print == "grid" else rows(lines))
        return 0
    if chosen.work is None:
        parser.error("--work is missing")
    pairs = [
        (model, role)
        for model in chosen.backbone.split(",")
        for role in chosen.role.split(",")
        if model not in BACKBONES or role == "image_encoder"
    ]
    if chosen.time:
        for model, role in pairs:
            for timing in _times(model, role, lines, chosen.work, chosen.runs):
                _add(chosen.results, timing)
        return 0
    done = {(line.model, line.role, line.variant) for line in lines if isinstance(line, Cell)}
    wanted = choose_variants(chosen.variant.split(","))
    for target in dict.fromkeys(split_variant(variant)[0] for variant in wanted):
        for model, role in pairs:
            names = [v for v in wanted if split_variant(v)[0] == target and (model, role, v) not in done]
            for cell in _cells(model, role, names, chosen):
                _add(chosen.results, cell)
    return 0


def _cells(model: str, role: Role, variants: Sequence[str], chosen: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells of one target: all precisions in one process, or each alone where that fails."""
    if not variants:
        return
    target = split_variant(variants[0])[0]
    if target not in _SHARING and len(variants) > 1:
        for variant in variants:
            yield from _cells(model, role, [variant], chosen)
        return
    command = [sys.executable, "-m", "benchmarks.export_cells", model, role, target]
    command += [",".join(split_variant(variant)[1] for variant in variants), "--work", str(chosen.work)]
    command += ["--limit", str(chosen.limit)]
    if chosen.photos is not None:
        command += ["--photos", str(chosen.photos)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    written, reason = result.stdout, "" if result.returncode == 0 else _reason(result, chosen.limit)
    found = [msgspec.json.decode(line, type=Cell) for line in written.splitlines() if line.startswith('{"type"')]
    yield from found
    missing = [variant for variant in variants if variant not in {cell.variant for cell in found}]
    if len(variants) == 1 and missing:
        yield Cell(model=model, role=role, variant=variants[0], status="failed", reason=reason)
        return
    for variant in missing:
        yield from _cells(model, role, [variant], chosen)


def _reason(result: "subprocess.CompletedProcess[str]", limit_s: int) -> str:
    """Return what the process died of: the exception's own words, or its signal."""
    if result.returncode == -signal.SIGXCPU:
        return f"not done after {limit_s} s of CPU time"
    if result.returncode < 0:
        return f"the process ended by signal {-result.returncode}"
    last = result.stderr.rpartition("Traceback (most recent call last):")[2]
    said = [line for line in last.splitlines() if line and not line.startswith(" ")]
    return " ".join(said)[:600] or f"exit status {result.returncode}"


def _times(model: str, role: Role, lines: Iterable[Cell | Timing], work: Path, runs: int) -> Iterator[Timing]:
    """Yield the latency of each graph of `model` and `role` that an engine of the runtime runs."""
    variants = [
        line.variant
        for line in lines
        if isinstance(line, Cell) and (line.model, line.role) == (model, role) and line.runner in _TIMED
    ]
    feed = typical_feed(model, role)
    calls = {}
    for variant in variants:
        record = msgspec.json.decode((work / model / f"{variant}-{role}.json").read_bytes(), type=GraphRecord)
        with quiet():
            runner = open_runner(record, work / model)
        if runner is not None:
            calls[variant] = partial(runner.run, role, feed)
    for variant, latency in measure_in_turns(calls, runs=runs).items():
        yield Timing(model=model, role=role, variant=variant, p50_ms=latency.p50_ms, p90_ms=latency.p90_ms, runs=runs)


def _read(path: Path) -> list[Cell | Timing]:
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Cell | Timing) for line in path.read_bytes().splitlines() if line]


def _add(path: Path, line: Cell | Timing) -> None:
    with path.open("ab") as stream:
        stream.write(msgspec.json.encode(line) + b"\n")
    print(msgspec.json.encode(line).decode()[:300], file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
