"""Is this bundle whole, and does it answer on this machine as it did where it was exported? No torch needed.

CoreML packages are interpreted where torch and coremltools are installed, and skipped where they are not.
For what another device made of the golden inputs, see `pocketlens.export.diagnosis`.
"""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role, load_bundle
from pocketlens.core.golden import GoldenSet, read_golden
from pocketlens.core.preprocess import decode, preprocess
from pocketlens.export.golden_steps import case_spec, decoders, results_of, steps_of
from pocketlens.export.golden_vectors import STAGES, Case, Stage, Vectors, array_sha256, read_vectors
from pocketlens.export.parity import GraphRunner, cosines, greedy_captions, token_agreement
from pocketlens.runtime.engines import ENGINES, open_engine

__all__ = ["Check", "VerifyReport", "verify_bundle"]

_FP32_COSINE: Final = 0.9999
# Golden pictures are others than those of the parity figures: they may lie this much further off.
_SLACK: Final = 4.0
_RARE: Final = 0.001


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: `figure` of `stage` for `subject` must be at least `limit`.

    Attributes:
        stage: `pixels` (share of equal bytes), a stage of the golden vectors such as `orientation` or
            `resize` (share of its cases that come out right), `embedding`, `text_embedding` (smallest
            cosine) or `captions` (share with equal ids).
        subject: `preprocess`, or the variant, e.g. `onnx-int8`.
    """

    stage: str
    subject: str
    figure: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure reaches the limit."""
        return self.figure >= self.limit


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. `skipped` names variants that nothing on this machine runs."""

    model_version: str
    checks: tuple[Check, ...]
    skipped: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def verify_bundle(path: Path) -> VerifyReport:
    """Return how the bundle at `path` answers to its own golden files on this machine.

    Raises:
        BundleError: a file is missing, changed, extra or malformed.
        EngineError: a graph does not load or fails while running.
    """
    bundle = load_bundle(path)
    golden = read_golden(bundle.root)
    spec = bundle.manifest.preprocess
    pixels = np.stack([preprocess(golden.folder / name, spec) for name in golden.golden.pictures])
    vectors = read_vectors(bundle.root)
    stored = golden.pixels
    equal = float(np.mean(pixels[: len(stored)] == stored)) if pixels.shape[1:] == stored.shape[1:] else 0.0
    checks = [Check(stage="pixels", subject="preprocess", figure=equal, limit=1.0)]
    if vectors is not None:
        checks += _preprocessing(bundle, vectors)
    golden = _with_tensors(golden, pixels, vectors)
    skipped = []
    for variant, graphs in _variants(bundle).items():
        runner = _runner(bundle, graphs)
        if runner is None:
            skipped.append(variant)
        else:
            checks += _answers(bundle, golden, variant, graphs, runner)
    return VerifyReport(model_version=bundle.manifest.model_version, checks=tuple(checks), skipped=tuple(skipped))


def _preprocessing(bundle: Bundle, vectors: Vectors) -> Iterator[Check]:
    """Yield one check for each stage: the share of its cases that this machine gets right."""
    right: dict[Stage, list[bool]] = {}
    same_decoders = decoders() == vectors.decoders
    for case in vectors.cases:
        right.setdefault(case.stage, []).append(_agrees(bundle, case, same_decoders))
    for stage in STAGES:
        if stage in right:
            yield Check(stage=stage, subject="preprocess", figure=float(np.mean(right[stage])), limit=1.0)


def _agrees(bundle: Bundle, case: Case, same_decoders: bool) -> bool:
    spec = case_spec(case, bundle.manifest.preprocess)
    if case.is_file:
        pixels = decode(bundle.root / case.input, spec)
        if case.pixels is not None:
            recorded = steps_of(bundle.root, case, bundle.manifest.preprocess)["pixels"]
            return case.tolerance.met(pixels, recorded) >= case.tolerance.share
    results = results_of(steps_of(bundle.root, case, bundle.manifest.preprocess))
    if case.tolerance.exact or same_decoders:
        return results == case.results
    # Lossy, not stored, and another decoder, which decides the bits: only the shape can be compared.
    return results["tensor"].shape == case.results["tensor"].shape


def _with_tensors(golden: GoldenSet, pixels: NDArray[np.uint8], vectors: Vectors | None) -> GoldenSet:
    """Return `golden` with a right tensor for as many pictures as possible, and answers for just those."""
    count = len(golden.pixels)
    more = []
    if vectors is not None:
        more = [i for i in range(count, len(pixels)) if array_sha256(pixels[i]) == vectors.tensors[i]]
    rows = [*range(count), *more]
    return golden.of(rows, np.concatenate([golden.pixels, pixels[more]]) if more else golden.pixels)


def _variants(bundle: Bundle) -> dict[str, dict[Role, GraphRecord]]:
    variants: dict[str, dict[Role, GraphRecord]] = {}
    for record in bundle.manifest.graphs:
        variants.setdefault(f"{record.target}-{record.precision}", {})[record.role] = record
    return variants


def _runner(bundle: Bundle, graphs: dict[Role, GraphRecord]) -> GraphRunner | None:
    """Return what runs `graphs`, all of one variant, on this machine; `None` if nothing does."""
    name = next(iter(graphs.values())).engine
    if name in ENGINES:
        return open_engine(name, bundle, graphs, threads=1) if find_spec(name) is not None else None
    # A graph without parity had an operator that the interpreter did not know when it was exported.
    interpreted = name == "coreml" and all(record.parity is not None for record in graphs.values())
    if not interpreted or find_spec("torch") is None or find_spec("coremltools") is None:
        return None
    from pocketlens.export.mil.engine import MilEngine  # it brings torch

    return MilEngine(bundle, graphs)


def _answers(
    bundle: Bundle,
    golden: GoldenSet,
    variant: str,
    graphs: dict[Role, GraphRecord],
    engine: GraphRunner,
) -> Iterator[Check]:
    # A graph that failed its gate is left out of its variant: what the others can show without it is checked.
    image = {}
    if "image_encoder" in graphs:
        # From the expected pixels, so that a difference in preprocessing is named once, not everywhere.
        image = engine.run("image_encoder", {"pixels": golden.pixels})
        yield _cosine("embedding", variant, graphs["image_encoder"], image["embedding"], golden.embeddings)
    if "text_encoder" in graphs:
        ids = golden.text_ids
        found = engine.run("text_encoder", {"ids": ids})["embedding"]
        yield _cosine("text_embedding", variant, graphs["text_encoder"], found, golden.text_embeddings)
    manifest = bundle.manifest
    if image and {"caption_prefill", "caption_decode"} <= graphs.keys() and manifest.caption is not None:
        captions = greedy_captions(
            engine, image["visual_tokens"], tokenizer=manifest.tokenizer, caption=manifest.caption
        )
        agreement = token_agreement(captions, [list(ids) for ids in golden.golden.caption_ids])
        limit = _caption_limit(graphs["caption_decode"], len(captions))
        yield Check(stage="captions", subject=variant, figure=float(agreement.mean()), limit=limit)


def _caption_limit(record: GraphRecord, count: int) -> float:
    """Return the share of equal captions below which a graph that keeps its parity falls once in a thousand times."""
    if record.precision == "fp32" or record.parity is None:
        return 1.0 if record.precision == "fp32" else 0.0
    # Few samples say little of the true share: a beta-binomial draw with Jeffreys' prior (Gelman et al., Bayesian Data
    # Analysis, section 2.4), and not a binomial one, for which 8 equal captions of 8 would allow no other for ever.
    samples, tail = record.parity.samples, 0.0
    same = record.parity.mean * samples + 0.5
    other = samples - record.parity.mean * samples + 0.5
    for equal in range(count + 1):
        weight = _log_beta(same + equal, other + count - equal) - _log_beta(same, other)
        tail += math.comb(count, equal) * math.exp(weight)
        if tail > _RARE:
            return equal / count
    return 1.0


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _cosine(
    stage: str,
    variant: str,
    record: GraphRecord,
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> Check:
    limit = _FP32_COSINE
    if record.precision != "fp32" and record.parity is not None:
        limit = 1 - _SLACK * (1 - record.parity.minimum)
    return Check(stage=stage, subject=variant, figure=float(cosines(found, expected).min()), limit=limit)
