"""Every target and precision of one student: size, delegated share, parity and latency, as a Markdown table.

Run: python -m benchmarks.export_student [STUDENT] [--target onnx,executorch]

STUDENT is a folder with student.json, student.safetensors and tokenizer.json; without one, a `nano` with
random weights is made, whose batch norms have seen pictures: its sizes and latencies are those of a
trained one, its cosines say that the paths work and no more. Pictures and texts are synthetic scenes.
Rows are printed as soon as they are known, one line of JSON each, to stderr; the table goes to stdout.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image

from pocketlens.core.bundle import CaptionSpec, EmbeddingSpec, Manifest, TokenizerSpec
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.distill.scenes.render import render
from pocketlens.distill.students.config import PRESETS
from pocketlens.distill.students.student import Student, load_student, preprocess_spec, save_student
from pocketlens.export.building import Build
from pocketlens.export.graphs import student_graphs
from pocketlens.export.outcomes import GraphOutcome
from pocketlens.export.recipe import ExportRecipe, Gates, choose_variants
from pocketlens.export.reference import Samples, calibration_feeds, load_pixels, reference_answers

_OPEN = Gates(
    fp32_min_cosine=0, fp32_min_token_agreement=0, fp16_min_mean_cosine=0, int8_min_mean_cosine=0, min_speedup=0
)
"""Every gate open: the table is to show what the gates would refuse."""


def draw_samples(folder: Path, count: int, side_px: int) -> Samples:
    scenes = [sample_scene(seed, split="train") for seed in range(count)]
    paths = [folder / f"{index:04}.png" for index in range(count)]
    for path, scene in zip(paths, scenes, strict=True):
        Image.fromarray(render(scene, size_px=side_px)).save(path)
    return Samples(paths, [captions(scene)[0] for scene in scenes])


def random_student(folder: Path, samples: Samples) -> Path:
    backend = train_bpe(list(samples.captions), vocab_size=PRESETS["nano"].vocab_size)
    config = msgspec.structs.replace(PRESETS["nano"], vocab_size=backend.get_vocab_size())
    torch.manual_seed(0)
    student = Student(config).train()
    pixels = torch.from_numpy(load_pixels(samples.pictures, preprocess_spec(config)))
    with torch.no_grad():
        for _ in range(20):
            student.image_encoder(pixels)
    save_student(folder, student)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def manifest_of(student: Student, tokenizer: Tokenizer) -> Manifest:
    config = student.config
    return Manifest(
        name="table",
        model_version="0",
        tasks=("embed", "caption"),
        embedding=EmbeddingSpec(dim=config.embed_dim),
        preprocess=preprocess_spec(config),
        tokenizer=TokenizerSpec(
            vocab_size=tokenizer.vocab_size,
            text_length=config.text_length,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        caption=CaptionSpec(prefix_length=student.caption_decoder.visual_tokens, max_tokens=config.caption_tokens),
        graphs=(),
        licence="Apache-2.0",
        provenance={},
    )


def tell(outcome: GraphOutcome) -> None:
    if outcome.status in {"passed", "not_run", "failed"}:
        print(msgspec.json.encode(outcome).decode(), file=sys.stderr, flush=True)


def table(outcomes: Iterable[GraphOutcome]) -> str:
    lines = [
        "| variant | graph | MB | delegated | cosine min / mean | p50 ms | × fp32 | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        parity = "–"
        if o.parity is not None and o.parity.metric == "cosine":
            parity = f"{o.parity.minimum:.5f} / {o.parity.mean:.5f}"
        elif o.parity is not None:
            parity = f"{o.parity.mean:.1%} of captions equal"
        cells = (
            o.variant,
            o.role,
            "–" if o.bytes is None else f"{o.bytes / 1e6:.3f}",
            "–" if o.delegation is None else f"{o.delegation.share:.1%} in {o.delegation.parts}",
            parity,
            "–" if o.latency is None else f"{o.latency.p50_ms:.3f}",
            "–" if o.speedup_vs_fp32 is None else f"{o.speedup_vs_fp32:.2f}",
            o.reason.replace("|", "/").replace("\n", " ")[:120] if o.status != "passed" else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure every export target of one student.")
    parser.add_argument("student", nargs="?", type=Path)
    parser.add_argument("--target", default="all", help="targets or variants, separated by commas")
    parser.add_argument("--samples", type=int, default=64, help="pictures to compare on; as many calibrate")
    parser.add_argument("--runs", type=int, default=100, help="timed calls of each graph")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        drawn = draw_samples(root, 2 * chosen.samples, 96)
        test, calibration = (
            Samples(drawn.pictures[part], drawn.captions[part])
            for part in (slice(chosen.samples), slice(chosen.samples, None))
        )
        folder = chosen.student or random_student(root / "student", calibration)
        student, tokenizer = load_student(folder)
        spec = preprocess_spec(student.config)
        feeds = calibration_feeds(
            student,
            tokenizer,
            load_pixels(calibration.pictures, spec),
            tokenizer.encode_batch(list(calibration.captions)).astype(np.int32),
            seed=0,
        )
        reference = reference_answers(
            student, tokenizer, load_pixels(test.pictures, spec), tokenizer.encode_batch(list(test.captions))
        )
        recipe = ExportRecipe(variants=choose_variants(chosen.target.split(",")), latency_runs=chosen.runs, gates=_OPEN)
        build = Build(recipe, root / "bundle", keep_going=True, watch=tell)
        try:
            build.graphs(
                str(folder),
                student_graphs(student),
                manifest=manifest_of(student, tokenizer),
                feeds=feeds,
                reference=reference,
                progress=lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr, flush=True),
            )
        finally:  # an export of which nothing is left is an error, and its table says why
            print(table(build.log.outcomes))


if __name__ == "__main__":
    main()
