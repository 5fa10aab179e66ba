"""From answers to figures, and the paired differences of two subjects."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.evaluation.answers import Answers, Seen
from pocketlens.distill.evaluation.calibration import RiskPoint, calibration_figures, risk_coverage
from pocketlens.distill.evaluation.captions import caption_figures, cider_scores, rouge_scores
from pocketlens.distill.evaluation.clipscore import clipscore_figures
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, hallucination_figures, recall_figures
from pocketlens.distill.evaluation.probes import probe_figures
from pocketlens.distill.evaluation.questions import Questions
from pocketlens.distill.evaluation.vocabulary import vocabulary_figures
from pocketlens.distill.evaluation.zero_shot import labels_of

__all__ = ["Scorecard", "differences", "right_captions", "scorecard"]

_PERCENT: Final = 100.0
_CURVE: Final = 100  # points of a risk-coverage curve that are kept


class Scorecard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one subject scored; see docs/evaluation.md for every figure.

    Attributes:
        subject: its name.
        key: of the questions; figures of other questions do not compare.
        pictures: how many there were.
        seed: of the bootstrap.
        figures: by name.
        risk_coverage: of the confidence, the surest first; empty for a subject without.
        notes: what a reader must know.
    """

    subject: str
    key: str
    pictures: int
    seed: int
    figures: dict[str, Figure]
    risk_coverage: tuple[RiskPoint, ...] = ()
    notes: tuple[str, ...] = ()


def scorecard(answers: Answers, samples: Sequence[Sample], questions: Questions, *, bootstrap: Bootstrap) -> Scorecard:
    """Return the figures of `answers` to `questions` about `samples`; `bootstrap` keeps their draws."""
    figures = _seen_figures(answers.clean, samples, bootstrap)
    if answers.right and questions.classes is not None:
        labelled = (labels_of(samples, questions.classes) >= 0).astype(np.float64)
        figures["zero_shot"] = bootstrap.ratio(np.array(answers.right, dtype=np.float64), labelled)
    captions = answers.clean.captions
    curve: Sequence[RiskPoint] = ()
    if captions:
        references = [sample.captions for sample in samples]
        figures["rouge_l"] = bootstrap.mean(_PERCENT * rouge_scores(captions, references))
        figures |= vocabulary_figures(captions, bootstrap=bootstrap)
        table = questions.table
        figures |= hallucination_figures(captions, questions.truths, bootstrap=bootstrap, mentioned=table.mentioned)
    if answers.probe_scores:
        figures |= _probe_figures(answers, questions, bootstrap)
    if answers.clip:
        figures |= clipscore_figures(np.array(answers.clip), np.array(answers.ref_clip), bootstrap=bootstrap)
    if answers.confidences:
        confidence, right = np.array(answers.confidences), right_captions(captions, questions)
        figures |= calibration_figures(confidence, right, bootstrap=bootstrap)
        curve = risk_coverage(confidence, right)
    for name, seen in answers.corrupted.items():
        figures |= _robustness(name, seen, samples, figures, bootstrap)
    return Scorecard(
        subject=answers.subject,
        key=answers.key,
        pictures=len(samples),
        seed=questions.seed,
        figures=figures,
        risk_coverage=tuple(curve[:: max(1, len(curve) // _CURVE)]),
        notes=(*answers.notes, *_notes(answers, questions)),
    )


def right_captions(captions: Sequence[str], questions: Questions) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return `(N,)`: which captions count as right when a confidence is judged.

    Where the objects of every picture were counted: it names all of them and no other. Else: it names at least one
    object that a human named, and none that no human named.
    """
    named = [questions.table.mentioned(text) for text in captions]
    pairs = zip(named, questions.truths, strict=True)
    if questions.counted:
        return np.array([kinds == truth for kinds, truth in pairs], dtype=np.bool_)
    return np.array([bool(kinds) and kinds <= truth for kinds, truth in pairs], dtype=np.bool_)


def differences(a: Scorecard, b: Scorecard, *, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Return `a - b` for every figure that both have, from paired draws.

    Raises:
        DataError: they were asked different questions.
    """
    if a.key != b.key:
        raise DataError(
            f"{a.subject} and {b.subject}",
            expected="answers to the same questions about the same pictures",
            found="different ones",
            remedy="Evaluate both in one call.",
        )
    return {name: bootstrap.difference(a.figures[name], b.figures[name]) for name in a.figures if name in b.figures}


def _seen_figures(seen: Seen, samples: Sequence[Sample], bootstrap: Bootstrap) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if seen.image_ranks:
        owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
        ranks = np.array(seen.image_ranks), np.array(seen.text_ranks)
        figures |= recall_figures(*ranks, owners, bootstrap=bootstrap)
    if seen.captions:
        figures |= caption_figures(seen.captions, [sample.captions for sample in samples], bootstrap=bootstrap)
    return figures


def _robustness(
    name: str, seen: Seen, samples: Sequence[Sample], clean: Mapping[str, Figure], bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return R@1 and CIDEr of the pictures that were made worse, and what of each was lost."""
    after: dict[str, Figure] = {}
    if seen.image_ranks:
        owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
        every = recall_figures(np.array(seen.image_ranks), np.array(seen.text_ranks), owners, bootstrap=bootstrap)
        after |= {way: every[way] for way in ("r1_i2t", "r1_t2i")}
    if seen.captions:
        scores = cider_scores(seen.captions, [sample.captions for sample in samples])
        after["cider"] = bootstrap.mean(_PERCENT * scores)
    return {f"{name}_{what}": figure for what, figure in after.items()} | {
        f"{name}_loss_{what}": bootstrap.loss(figure, clean[what]) for what, figure in after.items()
    }


def _probe_figures(answers: Answers, questions: Questions, bootstrap: Bootstrap) -> dict[str, Figure]:
    scores: list[dict[str, float]] = [{} for _ in questions.truths]
    for row, group in answers.probe_scores.items():
        scores[row] = {text: np.nan if value is None else value for text, value in group.items()}
    return probe_figures(questions.probes, scores, questions.table, bootstrap=bootstrap)


def _notes(answers: Answers, questions: Questions) -> list[str]:
    notes = []
    if answers.clean.captions and not questions.counted:
        notes.append("Hallucination: the truth is what the human captions name, so that the figures are upper bounds.")
    cut = sum(value is None for group in answers.probe_scores.values() for value in group.values())
    if cut:
        notes.append(f"{cut} probe sentences were longer than the captions of this subject and count as wrong.")
    return notes
