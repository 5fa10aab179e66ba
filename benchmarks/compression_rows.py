"""Export, judgement and timing of one student for `benchmarks.compression`."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.compression_students import Bench
from pocketlens.core.bundle import Bundle, Latency, load_bundle
from pocketlens.distill.evaluation.captions import cider_scores
from pocketlens.distill.evaluation.judged import JudgedLens
from pocketlens.distill.evaluation.metrics import retrieval_ranks
from pocketlens.export.latency import THREADS, measure_in_turns
from pocketlens.export.pipeline import export_student
from pocketlens.export.recipe import ExportRecipe, Gates, Variant, split_variant
from pocketlens.export.reference import Samples
from pocketlens.runtime import load
from pocketlens.runtime.engines.engine import Engine, open_engine

__all__ = ["Row", "bundle_folder", "bundle_of", "caption_of", "judge", "measure", "opened"]

ENGINES: Final = {"onnx": "onnxruntime", "executorch": "executorch"}
_CALIBRATION, _PARITY = 400, 32
_WORDS: Final = 12  # steps of a timed caption; the run's captions have as many words
_GATES: Final = Gates(
    fp32_min_cosine=0.999, fp32_min_token_agreement=0.9, int8_min_mean_cosine=0.0, min_speedup=0.0
)  # what is lost is measured here, not refused


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One student in one variant.

    Attributes:
        arm, variant: which.
        graph_bytes: of its graphs together.
        image_hits: `(N,)`, whether a picture's nearest text is its own.
        text_hits, texts: `(N,)`, how many of a picture's captions are nearest to it, of how many.
        cider: `(N,)`, in [0, 1000].

    The last four are empty where only size and latency were asked for.
    """

    arm: str
    variant: Variant
    graph_bytes: int
    image_hits: list[float] = []
    text_hits: list[float] = []
    texts: list[float] = []
    cider: list[float] = []


def bundle_folder(out: Path, arm: str, variant: Variant) -> Path:
    """Return where the bundle of a student is that has the graphs of `variant`: there is one for each target."""
    return out / "bundles" / f"{arm}-{split_variant(variant)[0]}"


def bundle_of(bench: Bench, arm: str, folder: Path, variants: Sequence[Variant]) -> Bundle:
    """Return the bundle of the student in `folder`, exported to one target now or by an earlier call."""
    out = bundle_folder(bench.out, arm, variants[0])
    if out.exists():
        return load_bundle(out)
    test, train = bench.test[:_PARITY], bench.train[:_CALIBRATION]
    return export_student(
        folder,
        out,
        recipe=ExportRecipe(variants=tuple(variants), latency_runs=5, mixed_precision="off", gates=_GATES),
        test=Samples([bench.folder / s.image for s in test], [s.captions[0] for s in test]),
        calibration=Samples([bench.folder / s.image for s in train], [s.captions[0] for s in train]),
        name="plane",
        licence=bench.recipe.licence,
        progress=lambda what, done, total: print(f"  {what} {done}/{total}", flush=True),
    )


def judge(bench: Bench, arm: str, bundle: Bundle, variant: Variant, *, answers: bool) -> Row:
    """Return the size of the bundle's graphs of `variant` and, with `answers`, what they make of the test pictures."""
    target, precision = split_variant(variant)
    graphs = [g for g in bundle.manifest.graphs if (g.target, g.precision) == (target, precision)]
    size = sum(graph.bytes for graph in graphs)
    if not answers:
        return Row(arm=arm, variant=variant, graph_bytes=size)
    with closing(load(bundle.root, engine=ENGINES[target], precision=precision, threads=THREADS)) as lens:
        judged = JudgedLens(lens, name=variant, batch_size=1 if target == "executorch" else 16)
        files = [sample.picture(bench.folder) for sample in bench.test]
        images, captions = judged.embed_images(files), judged.captions(files)
        texts = list(dict.fromkeys(text for sample in bench.test for text in sample.captions))
        row_of = {text: row for row, text in enumerate(texts)}
        vectors = judged.embed_texts(texts)
    every = np.array([row_of[text] for sample in bench.test for text in sample.captions])
    counts = np.array([len(sample.captions) for sample in bench.test])
    owners = np.repeat(np.arange(len(counts)), counts)
    image_ranks, text_ranks = retrieval_ranks(images, vectors[every], owners)
    scores = cider_scores([one.text for one in captions], [sample.captions for sample in bench.test])
    return Row(
        arm=arm,
        variant=variant,
        graph_bytes=size,
        image_hits=(image_ranks == 1).astype(float).tolist(),
        text_hits=np.bincount(owners[text_ranks == 1], minlength=len(counts)).astype(float).tolist(),
        texts=counts.astype(float).tolist(),
        cider=(100.0 * scores).tolist(),
    )


def opened(bundle: Bundle, variant: Variant) -> Engine:
    """Return an engine for the graphs of `variant`, on one thread."""
    target, precision = split_variant(variant)
    graphs = {g.role: g for g in bundle.manifest.graphs if (g.target, g.precision) == (target, precision)}
    return open_engine(ENGINES[target], bundle, graphs, threads=THREADS)


def caption_of(engine: Engine, pixels: np.ndarray) -> None:
    """Make a caption of 12 tokens as `engine` does: image encoder, prefill, decoding steps."""
    visual = engine.run("image_encoder", {"pixels": pixels})["visual_tokens"]
    cache = engine.run("caption_prefill", {"visual_tokens": visual})["cache"]
    for step in range(_WORDS):
        position = np.array([visual.shape[1] + step], np.int32)
        inputs = {"token": np.ones(1, np.int32), "position": position, "cache": cache}
        cache = engine.run("caption_decode", inputs)["cache"]


def measure(engines: Mapping[tuple[str, Variant], Engine], side: int, *, runs: int) -> dict[str, dict[str, Latency]]:
    """Return the latencies of image encoder and caption by `arm variant`, all measured in turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    encode = {key: partial(engine.run, "image_encoder", {"pixels": pixels}) for key, engine in engines.items()}
    write = {key: partial(caption_of, engine, pixels) for key, engine in engines.items()}
    images, captions = measure_in_turns(encode, runs=3 * runs), measure_in_turns(write, runs=runs)
    return {" ".join(key): {"image": images[key], "caption": captions[key]} for key in engines}
