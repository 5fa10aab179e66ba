"""What is wrong with the answers of a port's graphs: embeddings, text and captions.

A wrong mean or standard deviation is inside the graph's input, where no tensor shows it. The bundle
therefore carries the embeddings that the eager student gives under each usual wrong normalisation.
"""

from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import BundleSchemaError
from pocketlens.core.golden import GoldenSet
from pocketlens.export.answers import Answers, Ids
from pocketlens.export.golden_vectors import WRONG_NORMALISATION_FILE, Stage, Vectors
from pocketlens.export.parity import cosines

__all__ = ["Certainty", "Finding", "judge_model"]

Certainty = Literal["proven", "very likely", "likely", "stage only"]
"""`proven`: the known confusion gives what was found, bit for bit; `very likely`: at least 90 % of the
difference is explained by it; `likely`: at least 60 %; `stage only`: the stage is named by its cases,
the cause is not known."""

_UNIT: Final = 0.01
_OTHER_MODEL: Final = 0.3
_SAME_ANSWER: Final = 0.999
_TWINS: Final = 2.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong.

    Attributes:
        stage: where.
        cause: what, in words.
        certainty: see `Certainty`.
        explained: share of the difference that the cause accounts for, 0..1.
        cases: golden cases that fail by it; the first one is the smallest that shows it.
        expected: the figure that was expected.
        found: the figure that was found.
        remedy: what to do.
    """

    stage: Stage
    cause: str
    certainty: Certainty
    explained: float = 0.0
    cases: tuple[str, ...]
    expected: str
    found: str
    remedy: str


def judge_model(
    root: Path, golden: GoldenSet, vectors: Vectors, answers: Answers, *, precision: str, tensors_wrong: bool
) -> list[Finding]:
    """Return what is wrong with embeddings, text and captions.

    Args:
        root: of the bundle.
        golden: its golden files.
        vectors: its vectors.
        answers: what was handed in.
        precision: of the device's graphs, such as `fp32`; unknown ones count as `int8`.
        tensors_wrong: whether the tensors of golden pictures are wrong: then embeddings and captions
            must be, and are not judged.

    Raises:
        BundleSchemaError: the stored embeddings cannot be read.
    """
    limit = vectors.cosine.get(precision, vectors.cosine["int8"])
    findings: list[Finding] = []
    if answers.embeddings is not None and not tensors_wrong:
        findings += _embeddings(root, golden.embeddings, vectors, answers.embeddings, limit)
    text_ids_right = answers.text_ids is None or answers.text_ids == golden.golden.text_ids
    if answers.text_ids is not None and not text_ids_right:
        findings.append(_text_ids(answers.text_ids, golden.golden.text_ids))
    if answers.text_embeddings is not None and text_ids_right:
        findings += _form("text", "text", golden.text_embeddings, answers.text_embeddings) or _text(
            golden.text_embeddings, answers.text_embeddings, limit
        )
    if answers.captions is not None and not tensors_wrong and not findings:
        findings += _captions(answers.captions, golden.golden.caption_ids, exact=precision == "fp32")
    return findings


def _form(stage: Stage, what: str, expected: NDArray[np.float32], found: NDArray[Any]) -> list[Finding]:
    """Return what is wrong with shape, finiteness or length of embeddings."""
    cause, remedy = "", ""
    if found.shape != expected.shape:
        cause, remedy = f"shape {found.shape}", "Hand in one row for each golden input, in the order of golden.json."
    elif not np.isfinite(found).all():
        cause, remedy = "values that are not finite", "Look for an overflow in half precision or unset memory."
    else:
        off = float(np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1.0).max())
        if off > _UNIT and float(cosines(found, expected).min()) >= _SAME_ANSWER:
            cause = f"{what} embeddings are not scaled to length 1 (off by {off:.3f})"
            remedy = "Take the graph's output `embedding`, or divide by the length."
    if not cause:
        return []
    return [
        Finding(
            stage=stage,
            cause=cause,
            certainty="proven",
            cases=(what,),
            expected=f"finite rows of length 1, shape {expected.shape}",
            found=cause,
            remedy=remedy,
        )
    ]


def _embeddings(
    root: Path, expected: NDArray[np.float32], vectors: Vectors, found: NDArray[Any], limit: float
) -> list[Finding]:
    malformed = _form("embedding", "embeddings", expected, found)
    if malformed:
        return malformed
    near = cosines(found, expected)
    if near.min() >= limit:
        return []
    figures = {
        "cases": ("embeddings",),
        "expected": f"cosine at least {limit:g} for each of {len(expected)} pictures",
        "found": f"least {near.min():.6f}, mean {near.mean():.6f}",
    }
    named = _normalisation(root, vectors, expected, found)
    if named is not None:
        stage, cause, certainty, explained = named
        remedy = "Feed uint8 levels to the bundle's graph: cast, mean and standard deviation are inside it."
        return [_finding(stage, cause, certainty, remedy, figures, explained)]
    order = np.argmax(_normed(found) @ _normed(expected).T, axis=1)
    best = cosines(found, expected[order])
    if best.min() >= limit and len(set(order.tolist())) > 1:
        cause = f"the pictures are in another order: {order.tolist()}"
        return [_finding("embedding", cause, "proven", "Keep the order of golden.json.", figures, 1.0)]
    own, other = _normed(found) @ _normed(found).T, _normed(expected) @ _normed(expected).T
    if len(expected) > 1 and float(np.abs(own - other).max()) < 1 - limit:
        cause = "angles between pictures are right, vectors are not: the dimensions are permuted or turned"
        return [_finding("embedding", cause, "likely", "Take the output `embedding`, unchanged.", figures)]
    if near.mean() < _OTHER_MODEL:
        cause = "other weights or another output; no usual wrong normalisation gives these vectors"
        return [_finding("weights", cause, "likely", "Compare the graph's SHA-256 with the manifest.", figures)]
    cause = (
        "the right direction, not close enough: a loss of precision, or weights that are partly other ones; "
        "no usual wrong normalisation comes as close"
    )
    return [_finding("weights", cause, "stage only", "Run the fp32 graph; if it agrees, quantization is it.", figures)]


def _finding(
    stage: Stage,
    cause: str,
    certainty: Certainty,
    remedy: str,
    figures: dict[str, Any],
    explained: float = 0.0,
) -> Finding:
    return Finding(stage=stage, cause=cause, certainty=certainty, remedy=remedy, explained=explained, **figures)


def _normalisation(
    root: Path, vectors: Vectors, expected: NDArray[np.float32], found: NDArray[Any]
) -> tuple[Stage, str, Certainty, float] | None:
    """Return stage, cause, certainty and share of the wrong normalisation that explains the difference, if any."""
    if not vectors.wrong_normalisations:
        return None
    wrong = _wrong(root, len(vectors.wrong_normalisations), expected.shape[1])
    rows = wrong.shape[1]
    miss = 1.0 - float(cosines(found[:rows], expected[:rows]).mean())
    left = np.array([1.0 - float(cosines(found[:rows], row).mean()) for row in wrong])
    order = np.argsort(left)
    first = int(order[0])
    explained = 1.0 - float(left[first]) / miss if miss > 0 else 0.0
    if explained < 0.6:
        return None
    # float16 leaves 1e-6; two variants that give nearly the same vectors are both named.
    floor = max(float(left[first]), 1e-5) * _TWINS
    names = [vectors.wrong_normalisations[int(k)] for k in order if left[int(k)] <= floor]
    certainty: Certainty = "very likely" if explained >= 0.9 else "likely"
    stage: Stage = "layout" if names[0].startswith("channels") else "normalise"
    return stage, " or ".join(names), certainty, explained


def _wrong(root: Path, count: int, dim: int) -> NDArray[np.float32]:
    path = root / WRONG_NORMALISATION_FILE
    try:
        wrong = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise _unfit(path, count, dim, str(error)) from error
    if wrong.ndim != 3 or wrong.shape[0] != count or wrong.shape[2] != dim:
        raise _unfit(path, count, dim, str(wrong.shape))
    fit: NDArray[np.float32] = wrong
    return fit


def _unfit(path: Path, count: int, dim: int, found: str) -> BundleSchemaError:
    return BundleSchemaError(
        str(path), expected=f"float16 ({count}, P, {dim})", found=found, remedy="Export the bundle again."
    )


def _normed(rows: NDArray[Any]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


def _text(expected: NDArray[np.float32], found: NDArray[Any], limit: float) -> list[Finding]:
    near = cosines(found, expected)
    if near.min() >= limit:
        return []
    return [
        Finding(
            stage="text",
            cause="text embeddings are off",
            certainty="stage only",
            cases=("text",),
            expected=f"cosine at least {limit:g}",
            found=f"least {near.min():.6f}",
            remedy="Hand in text_ids.json too: it tells the tokenizer from the text encoder.",
        )
    ]


def _text_ids(found: Ids, expected: Ids) -> Finding:
    pairs = list(zip(found, expected, strict=False))
    cause = "token ids differ"
    if len(found) != len(expected):
        cause = f"{len(found)} texts in place of {len(expected)}"
    elif all(a == b[: len(a)] for a, b in pairs):
        cause = "padding is missing"
    elif all(a[: len(b) - 1] == b[1:][: len(a)] for a, b in pairs):
        cause = "the start token is missing"
    return Finding(
        stage="text",
        cause=cause,
        certainty="proven",
        cases=("text_ids",),
        expected="the ids of golden.json",
        found=f"{sum(a == b for a, b in pairs)} of {len(expected)} texts equal",
        remedy="Ids are <bos>, the text, <eos>, then <pad> up to text_length.",
    )


def _captions(found: Ids, expected: Ids, *, exact: bool) -> list[Finding]:
    if len(found) == len(expected) and all(a == b for a, b in zip(found, expected, strict=True)):
        return []
    equal = sum(a == b for a, b in zip(found, expected, strict=False))
    if not exact and equal and len(found) == len(expected):
        return []
    cause, remedy, certainty = _caption_cause(found, expected)
    return [
        Finding(
            stage="caption",
            cause=cause,
            certainty=certainty,
            cases=("captions",),
            expected=f"{'all' if exact else 'at least one'} of {len(expected)} captions with equal ids",
            found=f"{equal}",
            remedy=remedy,
        )
    ]


def _caption_cause(found: Ids, expected: Ids) -> tuple[str, str, Certainty]:
    pairs = list(zip(found, expected, strict=False))
    if len(found) != len(expected):
        return f"{len(found)} captions in place of {len(expected)}", "Hand in one a golden picture.", "proven"
    if all(a == b[:-1] or a == b for a, b in pairs):
        return "the end token is left out", "Keep the end token where it was reached.", "proven"
    if all(len(a) > 0 and a[1:] == b for a, b in pairs):
        return "the start token is included", "Hand in the ids after <bos>.", "proven"
    if all(a[: len(b)] == b for a, b in pairs):
        return "decoding does not stop at the end token", "Stop at <eos>.", "proven"
    starts = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) for a, b in pairs
    ]
    if all(start == 0 for start, (a, b) in zip(starts, pairs, strict=True) if a != b):
        return (
            "the first token differs already: prefill, start token or first position",
            "Feed <bos> at position prefix_length with the prefilled cache.",
            "likely",
        )
    return (
        f"captions part after {min(s for s, (a, b) in zip(starts, pairs, strict=True) if a != b)} tokens: "
        "the cache or the position of a decode step",
        "Feed each token at the position after the last one, with the cache that came back.",
        "likely",
    )
