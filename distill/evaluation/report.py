"""The report of an evaluation: one HTML file with figures, differences and pictures, and no link to any network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from pocketlens.core.errors import storage_errors
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.evaluation.answers import Answers
from pocketlens.distill.evaluation.captions import cider_scores, tokenize
from pocketlens.distill.evaluation.metrics import Figure
from pocketlens.distill.evaluation.pages import render, thumbnail
from pocketlens.distill.evaluation.questions import Questions
from pocketlens.distill.evaluation.scorecard import Scorecard

__all__ = ["failures", "write_report"]

_CARDS: Final = 8
_GROUPS: Final = (
    ("Retrieval and zero-shot classification, shares", ("r1_", "r5_", "r10_", "zero_shot")),
    ("Captions against human ones, times 100", ("cider", "bleu", "rouge")),
    ("Captions in the eyes of another model", ("clipscore", "ref_clipscore")),
    ("Hallucinated objects, shares", ("hallucination", "missed", "probe_")),
    ("Confidence", ("ece", "aurc", "right")),
    ("Length, vocabulary, repetition", ("caption_length", "vocabulary", "distinct", "repeated", "empty")),
    ("Pictures made worse", ("blur-", "noise-", "jpeg-", "dark-", "rotated-")),
)


class _Shown(NamedTuple):
    value: str
    low: str
    high: str


class _Row(NamedTuple):
    name: str
    figures: list[_Shown | None]


class _Group(NamedTuple):
    name: str
    rows: list[_Row]


class _Difference(NamedTuple):
    name: str
    value: str
    low: str
    high: str
    clear: bool


class _Differences(NamedTuple):
    name: str
    rows: list[_Difference]


class _Card(NamedTuple):
    picture: str
    caption: str
    human: str
    cider: str
    tags: list[str]


class _Cards(NamedTuple):
    name: str
    cards: list[_Card]


class _Show(NamedTuple):
    name: str
    failures: list[tuple[str, int]]
    groups: list[_Cards]


def write_report(
    path: Path,
    cards: Sequence[Scorecard],
    answers: Sequence[Answers],
    differences: dict[str, dict[str, Figure]],
    samples: Sequence[Sample],
    folder: Path,
    questions: Questions,
) -> None:
    """Write the page to `path`, in place of an older one.

    Args:
        path: the file.
        cards: one a subject.
        answers: likewise.
        differences: by the names of two subjects.
        samples: the pictures.
        folder: what their paths are relative to.
        questions: what was asked.

    Raises:
        PictureError: a picture that is shown cannot be read.
        StorageFull: no space left; an older report stays.
    """
    page = render(
        "report.html.jinja",
        title="Evaluation of " + ", ".join(card.subject for card in cards),
        pictures=cards[0].pictures,
        seed=cards[0].seed,
        notes=list(dict.fromkeys(f"{card.subject}: {note}" for card in cards for note in card.notes)),
        subjects=[card.subject for card in cards],
        groups=_groups(cards),
        differences=[
            _Differences(name, [_difference(what, figure) for what, figure in figures.items()])
            for name, figures in differences.items()
        ],
        shows=[_show(one, samples, folder, questions) for one in answers if one.clean.captions],
    )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(path)


def failures(answers: Answers, questions: Questions) -> list[tuple[str, ...]]:
    """Return, for each picture, what went wrong with its caption or its rank.

    `empty`, `invented` (names a class that the picture does not show), `overlooked` (names none of those that it
    shows), `repeats itself` (two words twice in a row), `not found` (no own caption among the first ten).
    """
    found: list[tuple[str, ...]] = []
    for row, truth in enumerate(questions.truths):
        tags: list[str] = []
        if answers.clean.captions:
            text = answers.clean.captions[row]
            named, words = questions.table.mentioned(text), tokenize(text).split()
            tags += ["empty"] if not words else []
            tags += ["invented"] if named - truth else []
            tags += ["overlooked"] if truth and not named & truth else []
            tags += (
                ["repeats itself"]
                if any(words[i : i + 2] == words[i + 2 : i + 4] for i in range(len(words) - 3))
                else []
            )
        tags += ["not found"] if answers.clean.image_ranks and answers.clean.image_ranks[row] > 10 else []
        found.append(tuple(tags))
    return found


def _groups(cards: Sequence[Scorecard]) -> list[_Group]:
    names = list(dict.fromkeys(name for card in cards for name in card.figures))
    groups = [
        _Group(title, [_row(name, cards) for name in names if name.startswith(starts)]) for title, starts in _GROUPS
    ]
    return [group for group in groups if group.rows]


def _row(name: str, cards: Sequence[Scorecard]) -> _Row:
    return _Row(name, [_shown(card.figures.get(name)) for card in cards])


def _shown(figure: Figure | None) -> _Shown | None:
    return None if figure is None else _Shown(*(_number(value) for value in (figure.value, figure.low, figure.high)))


def _difference(name: str, figure: Figure) -> _Difference:
    shown = [f"{value:+.4f}" for value in (figure.value, figure.low, figure.high)]
    return _Difference(name, shown[0], shown[1], shown[2], figure.low > 0 or figure.high < 0)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _show(answers: Answers, samples: Sequence[Sample], folder: Path, questions: Questions) -> _Show:
    captions = answers.clean.captions
    scores = 100 * cider_scores(captions, [sample.captions for sample in samples])
    tags = failures(answers, questions)
    kinds = dict.fromkeys(tag for each in tags for tag in each)

    def cards(rows: Sequence[int]) -> list[_Card]:
        return [
            _Card(
                thumbnail(samples[row].picture(folder)),
                captions[row],
                samples[row].captions[0],
                f"{scores[row]:.0f}",
                list(tags[row]),
            )
            for row in rows
        ]

    order = [int(row) for row in np.argsort(scores, kind="stable")]
    groups = [("Worst by CIDEr", order[:_CARDS]), ("Best by CIDEr", order[::-1][:_CARDS])]
    groups += [(f"Failure: {kind}", [row for row in order if kind in tags[row]][: _CARDS // 2]) for kind in kinds]
    return _Show(
        answers.subject,
        [(kind, sum(kind in each for each in tags)) for kind in kinds] or [("none", 0)],
        [_Cards(name, cards(rows)) for name, rows in groups if rows],
    )
