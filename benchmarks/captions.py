"""Captions a second: transformers' `generate()` and a bundle with the same weights, and what int8 costs in CIDEr.

::

    python -m benchmarks.captions student --run RUN --bundle BUNDLE --data WORK/data --work DIR
    python -m benchmarks.captions blip --size phone --work DIR

`student` takes a trained student and its bundle: the decoder runs behind `generate()` with transformers' cache, and
CIDEr is measured on the test split. `blip` saves a BLIP captioner of random weights and exports it with `hf:FOLDER`;
captions have a fixed number of tokens. Every figure is a median over rounds in which all systems take turns, from
pixels to ids, picture encoder included. `int8_blocks` is the variant `onnx-int8_blocks`.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.captions_peers import SIZES, BlipPeer, StudentPeer, write_blip
from benchmarks.direct_export import _samples
from pocketlens.core.bundle import Bundle, Role, file_sha256, load_bundle, write_bundle
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.metrics import Bootstrap
from pocketlens.distill.scenes.dataset import read_split
from pocketlens.export import ExportRecipe, Gates, export_student
from pocketlens.export.reference import load_pixels
from pocketlens.export.sources.opening import open_source
from pocketlens.export.targets.onnx_blocks import write_block_int8
from pocketlens.export.targets.onnx_compact import write_dynamic_int8
from pocketlens.runtime.decoding import Limits, greedy
from pocketlens.runtime.engines import Engine, open_engine

__all__ = ["main"]

_ROLES: Final[tuple[Role, ...]] = ("image_encoder", "caption_prefill", "caption_decode")
_TOKENS: Final = 20

Generate = Callable[[NDArray[np.uint8]], list[list[int]]]


class Device:
    """One precision of a bundle, from pixels to greedy ids.

    Args:
        bundle: with ONNX graphs.
        precision: which.
        threads: of one call.
        endless: never end a caption before `tokens`.
        tokens: the most ids of a caption.
    """

    def __init__(self, bundle: Bundle, precision: str, *, threads: int, endless: bool, tokens: int) -> None:
        records = [r for r in bundle.manifest.graphs if (r.target, r.precision) == ("onnx", precision)]
        self._engine: Engine = open_engine("onnxruntime", bundle, {r.role: r for r in records}, threads=threads)
        caption, ids = bundle.manifest.caption, bundle.manifest.tokenizer
        if caption is None:
            raise SystemExit("the bundle does not caption")
        self._limits = Limits(
            bos_id=ids.bos_id,
            eos_id=-1 if endless else ids.eos_id,
            start=caption.prefix_length,
            max_tokens=min(tokens, caption.max_tokens),
        )
        self.logits: list[NDArray[np.float32]] | None = None

    def generate(self, pixels: NDArray[np.uint8]) -> list[list[int]]:
        """Return the ids of each picture."""
        visual = self._engine.run("image_encoder", {"pixels": pixels})["visual_tokens"]
        cache = self._engine.run("caption_prefill", {"visual_tokens": visual})["cache"]
        return [list(caption.token_ids) for caption in greedy(self._step, cache, self._limits)]

    def _step(
        self, token: NDArray[np.int32], position: NDArray[np.int32], cache: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        fed = {"token": token, "position": position, "cache": cache}
        logits, grown = self._engine.run("caption_decode", fed).values()
        if self.logits is not None:
            self.logits.append(logits)
        return logits, grown


def with_blocks(bundle: Bundle, root: Path) -> Bundle:
    """Return a copy of `bundle` at `root` with one more precision, `int8_blocks`, as the export writes it.

    Made from the fp32 graphs, so that a bundle of an earlier export can be measured.
    """
    staged = root.with_name(f"{root.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(bundle.root, staged)
    graphs = list(bundle.manifest.graphs)
    records = {(r.role, r.precision): r for r in graphs if r.target == "onnx"}
    for role in _ROLES:
        record = records[role, "fp32"]
        path = staged / "graphs" / "onnx-int8_blocks" / f"{role}.onnx"
        path.parent.mkdir(exist_ok=True)
        write = write_block_int8 if role == "caption_decode" else write_dynamic_int8
        write(bundle.path(record), path)
        graphs.append(
            msgspec.structs.replace(
                record,
                precision="int8_blocks",
                path=path.relative_to(staged).as_posix(),
                sha256=file_sha256(path),
                bytes=path.stat().st_size,
                parity=None,
                latency=None,
                preferred=False,
            )
        )
    return write_bundle(root, msgspec.structs.replace(bundle.manifest, graphs=tuple(graphs)), staged)


def speeds(systems: dict[str, Generate], pixels: NDArray[np.uint8], *, rounds: int) -> dict[str, float]:
    """Return tokens/s of each system: the median over rounds in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, generate in systems.items():
            started = time.perf_counter()
            ids = generate(pixels)
            took = time.perf_counter() - started
            if turn:  # the first round warms up
                found[name].append(sum(map(len, ids)) / took)
    return {name: float(np.median(values)) for name, values in found.items()}


def logit_difference(
    peer: Callable[[NDArray[np.uint8], int], tuple[list[list[int]], NDArray[np.float32]]],
    device: Device,
    pixels: NDArray[np.uint8],
    tokens: int,
) -> tuple[float, bool]:
    """Return the largest difference of logits over a greedy caption of each picture, and whether all ids are equal."""
    largest, equal = 0.0, True
    for row in pixels:
        ids, expected = peer(row[None], tokens)
        device.logits = []
        found = device.generate(row[None])
        equal &= found == ids
        steps = min(len(device.logits), expected.shape[1])
        largest = max(largest, float(np.abs(np.stack(device.logits[:steps], axis=1) - expected[:, :steps]).max()))
    device.logits = None
    return largest, equal


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("student", "blip"))
    parser.add_argument("--work", type=Path, required=True, help="models and bundles that are made go here")
    parser.add_argument("--run", type=Path, help="student: folder of the trained student")
    parser.add_argument("--bundle", type=Path, help="student: its bundle")
    parser.add_argument("--data", type=Path, help="student: folder of the scenes")
    parser.add_argument("--pictures", type=int, default=200, help="student: of the test split, for CIDEr")
    parser.add_argument("--size", choices=sorted(SIZES), default="phone", help="blip")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only-make", action="store_true", help="export and stop: the rest can then be timed alone")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    bundle, folder = _made(options)
    if options.only_make:
        return 0
    peer: StudentPeer | BlipPeer
    if options.model == "student":
        peer = StudentPeer(options.run)
        samples = read_split(options.data, "test")[: options.pictures]
        pixels = load_pixels([options.data / sample.image for sample in samples], bundle.manifest.preprocess)
    else:
        model = open_source(f"hf:{folder}").model
        peer = BlipPeer(folder, model.mean, model.std)
        pixels = load_pixels(_samples(options.work / "pictures", 8).pictures, bundle.manifest.preprocess)
    endless = options.model == "blip"
    most = bundle.manifest.caption.max_tokens if bundle.manifest.caption else 0
    tokens = min(_TOKENS, most) if endless else most
    precisions = [r.precision for r in bundle.manifest.graphs if r.target == "onnx" and r.role == "caption_decode"]
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        devices = {p: Device(bundle, p, threads=threads, endless=endless, tokens=tokens) for p in precisions}
        systems: dict[str, Generate] = {"transformers": lambda rows: peer.generate(rows, tokens)[0]}
        systems |= {precision: device.generate for precision, device in devices.items()}
        if threads == options.threads[0]:
            difference, equal = logit_difference(peer.generate, devices["fp32"], pixels[:8], tokens)
            print(f"fp32 against generate(): logits differ by {difference:.3g} at most, ids equal: {equal}")
        for batch in options.batch:
            found = speeds(systems, pixels[:batch], rounds=options.rounds)
            base = found["transformers"]
            rows += [
                {"threads": threads, "batch": batch, "system": n, "tokens_per_s": v, "ratio": v / base}
                for n, v in found.items()
            ]
    for row in rows:
        text = (
            f"{row['threads']} threads, batch {row['batch']}: {row['system']:<14} {row['tokens_per_s']:8.1f} tokens/s"
        )
        print(f"{text} {row['ratio']:6.2f} x")
    figures: dict[str, Any] = {"speed": rows}
    if options.model == "student":
        figures["cider"] = _cider(bundle, systems, pixels, [list(sample.captions) for sample in samples])
    print(json.dumps(figures))
    return 0


def _made(options: argparse.Namespace) -> tuple[Bundle, Path]:
    """Return the bundle with `int8_blocks`, and the folder of the BLIP model."""
    name = "student" if options.model == "student" else f"blip-{options.size}"
    folder, root = options.work / "models" / name, options.work / f"{name}-blocks"
    if root.is_dir():
        return load_bundle(root), folder
    if options.model == "student":
        return with_blocks(load_bundle(options.bundle), root), folder
    if not (folder / "config.json").is_file():
        write_blip(folder, options.size)
    samples = _samples(options.work / "pictures", 8)
    recipe = ExportRecipe(
        variants=("onnx-fp32", "onnx-int8") if options.size == "phone" else ("onnx-fp32",),
        calibration_samples=8,
        latency_runs=5,
        golden_samples=2,
        gates=Gates(int8_min_mean_cosine=0.0, min_speedup=1e-6),
    )
    plain = export_student(
        f"hf:{folder}",
        options.work / name,
        recipe=recipe,
        test=samples,
        calibration=samples,
        name=name,
        licence="unknown",
    )
    return with_blocks(plain, root), folder


def _cider(
    bundle: Bundle, systems: dict[str, Generate], pixels: NDArray[np.uint8], references: list[list[str]]
) -> dict[str, dict[str, float]]:
    """Print and return CIDEr of each system with its 95 % interval, and how many captions are transformers'."""
    tokenizer = Tokenizer.from_file(bundle.tokenizer_path, text_length=bundle.manifest.tokenizer.text_length)
    bootstrap = Bootstrap(len(pixels), seed=0)
    found: dict[str, dict[str, float]] = {}
    first: list[list[int]] | None = None
    for name, generate in systems.items():
        ids = [row for start in range(0, len(pixels), 16) for row in generate(pixels[start : start + 16])]
        first = first or ids
        figure = caption_figures([tokenizer.decode(row) for row in ids], references, bootstrap=bootstrap)["cider"]
        same = float(np.mean([a == b for a, b in zip(ids, first, strict=True)]))
        found[name] = {"cider": figure.value, "low": figure.low, "high": figure.high, "same_ids": same}
        print(f"{name:<14} CIDEr {figure.value:6.2f} [{figure.low:.2f}, {figure.high:.2f}], {same:.1%} same ids")
    return found


if __name__ == "__main__":
    sys.exit(main())
