"""Is this bundle whole, and does it answer on this machine as it did where it was exported? No torch."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role, load_bundle
from pocketlens.core.preprocess import preprocess
from pocketlens.export.golden import GoldenSet, read_golden
from pocketlens.export.parity import cosines, greedy_captions, token_agreement
from pocketlens.runtime.engines import ENGINES, Engine, open_engine

__all__ = ["Check", "VerifyReport", "verify_bundle"]

_FP32_COSINE: Final = 0.9999
# Golden pictures are others than those of the parity figures: they may lie this much further off.
_SLACK: Final = 4.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: `figure` of `stage` for `subject` must be at least `limit`.

    Attributes:
        stage: `pixels` (share of equal bytes), `embedding`, `text_embedding` (smallest cosine) or
            `captions` (share with equal ids).
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
    """The outcome. `skipped` names variants whose engine is not on this machine."""

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
    equal = float(np.mean(pixels == golden.pixels)) if pixels.shape == golden.pixels.shape else 0.0
    checks = [Check(stage="pixels", subject="preprocess", figure=equal, limit=1.0)]
    skipped = []
    for variant, graphs in _variants(bundle).items():
        name = next(iter(graphs.values())).engine
        if name not in ENGINES or find_spec(name) is None:
            skipped.append(variant)
            continue
        checks += _answers(bundle, golden, variant, graphs, open_engine(name, bundle, graphs, threads=1))
    return VerifyReport(model_version=bundle.manifest.model_version, checks=tuple(checks), skipped=tuple(skipped))


def _variants(bundle: Bundle) -> dict[str, dict[Role, GraphRecord]]:
    variants: dict[str, dict[Role, GraphRecord]] = {}
    for record in bundle.manifest.graphs:
        variants.setdefault(f"{record.target}-{record.precision}", {})[record.role] = record
    return variants


def _answers(
    bundle: Bundle,
    golden: GoldenSet,
    variant: str,
    graphs: dict[Role, GraphRecord],
    engine: Engine,
) -> Iterator[Check]:
    # From the expected pixels, so that a difference in preprocessing is named once, not everywhere.
    image = engine.run("image_encoder", {"pixels": golden.pixels})
    yield _cosine("embedding", variant, graphs["image_encoder"], image["embedding"], golden.embeddings)
    if "text_encoder" in graphs:
        ids = np.array(golden.golden.text_ids, dtype=np.int32)
        found = engine.run("text_encoder", {"ids": ids})["embedding"]
        yield _cosine("text_embedding", variant, graphs["text_encoder"], found, golden.text_embeddings)
    manifest = bundle.manifest
    if "caption_decode" in graphs and manifest.caption is not None:
        captions = greedy_captions(
            engine, image["visual_tokens"], tokenizer=manifest.tokenizer, caption=manifest.caption
        )
        agreement = token_agreement(captions, [list(ids) for ids in golden.golden.caption_ids])
        limit = 1.0 if graphs["caption_decode"].precision == "fp32" else 0.0
        yield Check(stage="captions", subject=variant, figure=float(agreement.mean()), limit=limit)


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
