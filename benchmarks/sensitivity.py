"""Which layers of an image tower do not survive int8, what else helps, and what float layers cost.

    python -m benchmarks.sensitivity --backbone repvit_m0_9 --out DIR [--photos PICTURES.tar] [--ways]

Makes an image tower of random weights whose batch norms have seen the calibration pictures, exports it to ONNX, ranks
its layers, searches the fewest float layers that pass the gate on held-out pictures, and writes `report.md`,
`frontier.json`, `frontier.png` and the graphs into DIR. `--ways` compares ways of quantizing first. `--time` times the
graphs in DIR again, which needs a quiet machine and few seconds. Pictures are rendered scenes,
or the first JPEG files of an uncompressed tar. Random weights stand in for trained ones: they have the structure and
honest batch statistics, not the outliers that training makes.
"""

import argparse
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model
from torch import nn

from pocketlens.core.bundle import TensorSpec
from pocketlens.core.errors import ParityGateFailed
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.distill.scenes.render import render
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.image_encoder import ImageEncoder
from pocketlens.export.graphs import Graph
from pocketlens.export.latency import measure_in_turns
from pocketlens.export.parity import cosines
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity.answers import Runner, run_graph
from pocketlens.export.sensitivity.comparison import compare_settings, trials_table
from pocketlens.export.sensitivity.equalisation import equalise
from pocketlens.export.sensitivity.frontier import measure_frontier
from pocketlens.export.sensitivity.layers import RULES, Layer
from pocketlens.export.sensitivity.measure import measure_layers
from pocketlens.export.sensitivity.plot import plot_frontier
from pocketlens.export.sensitivity.quantizer import StaticQuantizer
from pocketlens.export.sensitivity.search import Gate, MixedPrecision, compare, fewest_float_layers
from pocketlens.export.sensitivity.settings import Settings
from pocketlens.export.targets.onnx import OnnxTarget
from pocketlens.export.targets.onnx_float import kept_in_float

_RANKING, _BATCH = 8, 16


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; returns 1 if nothing short of fp32 passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="repvit_m0_9")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--pictures", type=int, default=32, help="for calibration, and as many held out")
    parser.add_argument("--photos", type=Path, help="an uncompressed tar of JPEG files; default: rendered scenes")
    parser.add_argument("--cosine", type=float, default=0.99)
    parser.add_argument("--runs", type=int, default=50, help="timed calls of each graph")
    parser.add_argument("--operators", default="Conv,Add,Relu,Gemm,MatMul", help="ONNX operators to quantize")
    parser.add_argument("--activations", type=int, choices=(8, 16), default=8, help="bits")
    parser.add_argument("--ways", action="store_true", help="also compare ways of quantizing")
    parser.add_argument("--time", action="store_true", help="only time, in turns, the graphs that a run left in DIR")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.time:
        print(_timed(options.out, options.side, options.runs))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    pixels = _pictures(options.photos, 2 * options.pictures, options.side)
    calibration, held_out = _feeds(pixels[: options.pictures]), _feeds(pixels[options.pictures :])
    tower = _tower(options.backbone, options.side, pixels[: options.pictures])
    fused = options.out / "fused.onnx"
    _export(reparameterize_model(tower), pixels, fused)
    gate = Gate(cosine=options.cosine)
    settings = Settings(
        operators=tuple(options.operators.split(",")),
        float_nodes=frozenset(kept_in_float(onnx.load(fused).graph)),
        activation_bits=options.activations,
    )
    report = [f"# {options.backbone}, {options.side} px, {options.pictures} + {options.pictures} pictures\n"]
    report.append(_noise(fused, pixels[options.pictures :]))
    if options.ways:
        branched = options.out / "branched.onnx"
        _export(tower, pixels, branched)
        report.append(_ways(fused, branched, settings, calibration, held_out, gate))
    quantizer = StaticQuantizer(fused, calibration, settings)
    sensitivities = measure_layers(quantizer, calibration[:_RANKING], progress=_progress)
    found: MixedPrecision | None = None
    try:
        found = fewest_float_layers(
            quantizer,
            search=calibration,
            held_out=held_out,
            gate=gate,
            sensitivities=sensitivities,
            progress=_progress,
        )
    except ParityGateFailed as error:
        report.append(f"{error}\n")
    for label, kept in {"nothing": (), "chosen": found.float_layers if found else None}.items():
        if kept is not None:
            onnx.save(quantizer.quantized(kept), options.out / f"int8-a{options.activations}-{label}.onnx")
    result = measure_frontier(
        options.backbone,
        quantizer,
        sensitivities=sensitivities,
        chosen=None if found is None else found.float_layers,
        held_out=held_out,
        gate=gate,
        sets={name: rule(quantizer.layers) for name, rule in RULES.items()},
        runs=options.runs,
        progress=_progress,
    )
    report.append(result.markdown())
    report.append(_spread(quantizer, held_out, () if found is None else found.float_layers))
    (options.out / "report.md").write_text("\n".join(report), encoding="utf-8")
    result.write(options.out / "frontier.json")
    plot_frontier(result, options.out / "frontier.png")
    print("\n".join(report))
    return int(found is None)


def _ways(
    fused: Path, branched: Path, base: Settings, calibration: list[Feed], held_out: list[Feed], gate: Gate
) -> str:
    """Return a table of ways to quantize all layers."""
    equal, pairs = equalise(onnx.load(fused))
    equalised = fused.with_name("equalised.onnx")
    onnx.save(equal, equalised)
    apart = replace(base, float_nodes=frozenset(kept_in_float(onnx.load(branched).graph)))
    products = tuple(name for name in base.operators if name not in ("Add", "Relu"))
    ways = {
        "fused, per channel, 7 bits, min-max, asymmetric": (fused, base),
        "weights per tensor": (fused, replace(base, per_channel=False)),
        "weights in 8 bits": (fused, replace(base, weight_bits=8)),
        "symmetric activations": (fused, replace(base, symmetric=True)),
        "activations in 16 bits": (fused, replace(base, activation_bits=16)),
        "percentile 99.99": (fused, replace(base, calibration="percentile")),
        "percentile 99.9": (fused, replace(base, calibration="percentile", percentile=99.9)),
        "entropy": (fused, replace(base, calibration="entropy")),
        "convolutions and linear layers only": (fused, replace(base, operators=products)),
        f"equalised ({pairs} pairs)": (equalised, base),
        f"equalised ({pairs} pairs), per tensor": (equalised, replace(base, per_channel=False)),
        "branches not fused": (branched, apart),
        "branches not fused, per tensor": (branched, replace(apart, per_channel=False)),
    }
    return trials_table(
        compare_settings(ways, calibration=calibration, held_out=held_out, gate=gate, progress=_progress)
    )


def _spread(quantizer: StaticQuantizer, held_out: list[Feed], chosen: Sequence[Layer]) -> str:
    """Return how much pictures differ for this tower, and what int8 keeps of the difference."""
    expected = run_graph(quantizer.model, held_out)
    lines = [
        "| output | float: picture to picture | int8, mean taken off | chosen, mean taken off |",
        "|---|---:|---:|---:|",
    ]
    plain, mixed = run_graph(quantizer.quantized(), held_out), run_graph(quantizer.quantized(chosen), held_out)
    for name, value in expected.items():
        apart = cosines(value[:-1], value[1:]).mean()
        mean = value.mean(axis=0, keepdims=True)
        centred = [cosines(found[name] - mean, value - mean).mean() for found in (plain, mixed)]
        lines.append(f"| {name} | {apart:.4f} | {centred[0]:.4f} | {centred[1]:.4f} |")
    return "\n".join(lines) + "\n"


def _noise(path: Path, pixels: NDArray[np.uint8]) -> str:
    """Return what the float graph itself makes of noise in its pixels: how much it amplifies."""
    model, rng = onnx.load(path), np.random.default_rng(0)
    expected = run_graph(model, _feeds(pixels))
    lines = ["| noise in the pixels, float graph | cosine mean | min |", "|---|---:|---:|"]
    for levels in (1, 2, 4):
        noise = rng.integers(-levels, levels + 1, pixels.shape)
        noisy = np.clip(pixels.astype(np.int64) + noise, 0, 255).astype(np.uint8)
        parity = compare(expected, run_graph(model, _feeds(noisy)), Gate())
        lines.append(f"| up to {levels} of 255 levels | {parity.mean:.4f} | {parity.minimum:.4f} |")
    return "\n".join(lines) + "\n"


def _timed(folder: Path, side: int, runs: int) -> str:
    """Return a table of the latencies of the graphs in `folder`, measured in turns."""
    paths = sorted(folder.glob("*.onnx"))
    feed = {"pixels": np.zeros((1, side, side, 3), np.uint8)}
    calls = {path.stem: partial(Runner(onnx.load(path)).run, feed) for path in paths}
    times = measure_in_turns(calls, runs=runs)
    rows = [
        f"| {p.stem} | {p.stat().st_size / 1e6:.2f} | {times[p.stem].p50_ms:.2f} | {times[p.stem].p90_ms:.2f} |"
        for p in paths
    ]
    return "\n".join(["| graph | MB | p50 ms | p90 ms |", "|---|---:|---:|---:|", *rows])


def _pictures(photos: Path | None, count: int, side: int) -> NDArray[np.uint8]:
    """Return uint8 (count, side, side, 3)."""
    if photos is None:
        return np.stack([render(sample_scene(seed, split="train"), size_px=side) for seed in range(count)])
    spec = PreprocessSpec(height_px=side, width_px=side)
    found: list[NDArray[np.uint8]] = []
    with tarfile.open(photos) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if stream is not None and len(found) < count:
                found.append(preprocess(stream.read(), spec))
    return np.stack(found)


def _feeds(pixels: NDArray[np.uint8]) -> list[Feed]:
    return [{"pixels": row[None]} for row in pixels]


@torch.no_grad()
def _tower(backbone: str, side: int, pixels: NDArray[np.uint8]) -> ImageEncoder:
    """Return a tower in eval mode whose batch norms hold the average over `pixels`."""
    torch.manual_seed(0)
    config = StudentConfig(
        backbone=backbone, image_px=side, visual_grid=4, embed_dim=256, width=256, heads=4,
        text_layers=1, decoder_layers=1, vocab_size=512,
    )  # fmt: skip
    tower = ImageEncoder(config).train()
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # a plain average, not a moving one
    for first in range(0, len(pixels), _BATCH):
        tower(torch.from_numpy(pixels[first : first + _BATCH]))
    return tower.eval()


@torch.no_grad()
def _export(tower: nn.Module, pixels: NDArray[np.uint8], path: Path) -> None:
    example = torch.from_numpy(pixels[:2])
    embedding, visual = tower(example)
    graph = Graph(
        "image_encoder",
        tower.eval(),
        (TensorSpec(name="pixels", dtype="uint8", shape=(-1, *example.shape[1:])),),
        (
            TensorSpec(name="embedding", dtype="float32", shape=(-1, *embedding.shape[1:])),
            TensorSpec(name="visual_tokens", dtype="float32", shape=(-1, *visual.shape[1:])),
        ),
        (example,),
    )
    OnnxTarget().export(graph, {"fp32": path}, [])


def _progress(what: str, done: int, total: int) -> None:
    if total in (0, done) or done % 10 == 0:
        print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
