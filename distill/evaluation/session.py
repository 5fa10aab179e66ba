"""One evaluation: every subject asked the same questions, each one's answers kept as soon as it has given them.

::

    OUT/answers/SUBJECT.json    what a subject said; asked again only if the questions or the subject changed
    OUT/SUBJECT.json            its figures: a `Scorecard`
    OUT/differences.json        paired differences of every subject from the first
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill.data.sample import Sample, read_samples
from pocketlens.distill.evaluation.answers import Answers, ask, check_samples, load_answers, save_answers
from pocketlens.distill.evaluation.clipscore import check_judge
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
from pocketlens.distill.evaluation.questions import Judge, Questions
from pocketlens.distill.evaluation.scorecard import Scorecard, differences, scorecard
from pocketlens.distill.evaluation.subjects import Opened, Subject

__all__ = ["Outcome", "evaluate_subjects", "file_name", "read_split"]

_PLAIN: Final = re.compile(r"[^\w.#-]+")
Told = Callable[[str, int, int], None]


class Outcome(msgspec.Struct, frozen=True):
    """What came of an evaluation, subjects in the order in which they were named.

    Attributes:
        cards: the figures.
        answers: what they were made of.
        differences: by `A - B`, of each later subject from the first: `later - first`.
    """

    cards: tuple[Scorecard, ...]
    answers: tuple[Answers, ...]
    differences: dict[str, dict[str, Figure]]


def read_split(data: Path, split: str, *, limit: int = 0) -> tuple[list[Sample], Path]:
    """Return the first samples of `split` and the folder that their paths are relative to.

    Args:
        data: a data set's folder, or the work folder of a distillation.
        split: its name.
        limit: the most samples; 0 for all.

    Raises:
        DataError: there is no such split, it is empty, or a picture has no caption.
    """
    folder = data / "data" if (data / "data" / f"{split}.jsonl").exists() else data
    samples = read_samples(folder, split)[: limit or None]
    check_samples(samples)
    return samples, folder


def evaluate_subjects(
    subjects: Sequence[Subject],
    samples: Sequence[Sample],
    folder: Path,
    questions: Questions,
    *,
    judge: Judge | None = None,
    out: Path | None = None,
    progress: Told | None = None,
    judged: Callable[[Scorecard], None] = lambda card: None,
) -> Outcome:
    """Return the figures of all `subjects`; one is in memory at a time.

    Args:
        subjects: of different names.
        samples: the pictures.
        folder: what their paths are relative to.
        questions: what is asked.
        judge: of CLIPScore.
        out: where answers and figures are kept; `None` keeps nothing.
        progress: called with (subject, pictures looked at, pictures to look at).
        judged: called with the figures of each subject once they are there, whatever happens to the next one.

    Raises:
        DataError: two subjects of one name, the judge is a subject, or an earlier file is damaged.
        PocketlensError: a subject cannot be opened, or fails.
    """
    names = [subject.name for subject in subjects]
    if not names or len(set(names)) < len(names):
        raise DataError(
            "subjects",
            expected="at least one, each named once",
            found=", ".join(names) or "none",
            remedy="Give two folders of the same name different names.",
        )
    bootstrap = Bootstrap(len(samples), seed=questions.seed)
    cards, everything = [], []
    for subject in subjects:
        answers = _asked(subject, samples, folder, questions, judge, out, progress)
        everything.append(answers)
        cards.append(scorecard(answers, samples, questions, bootstrap=bootstrap))
        if out is not None:
            _write(out / f"{file_name(subject.name)}.json", cards[-1])
        judged(cards[-1])
    first = cards[0]
    pairs = {f"{card.subject} - {first.subject}": differences(card, first, bootstrap=bootstrap) for card in cards[1:]}
    if out is not None and pairs:
        _write(out / "differences.json", pairs)
    return Outcome(tuple(cards), tuple(everything), pairs)


def file_name(subject: str) -> str:
    """Return a file's name, without its ending, for a subject of any name."""
    plain = _PLAIN.sub("-", subject).strip("-.")
    return plain if plain == subject else f"{plain}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


def _asked(
    subject: Subject,
    samples: Sequence[Sample],
    folder: Path,
    questions: Questions,
    judge: Judge | None,
    out: Path | None,
    progress: Told | None,
) -> Answers:
    opened = subject.open()
    if judge is not None:
        check_judge(judge.id, judge.identity, subject.name, opened.identity)
    path = None if out is None else out / "answers" / f"{file_name(subject.name)}.json"
    known = None if path is None else load_answers(path)
    if known is not None and (known.key, known.identity) == (questions.key(samples), opened.identity):
        return known
    answers = ask(
        opened.system,
        opened.identity,
        samples,
        folder,
        questions,
        judge=judge,
        notes=_notes(opened, judge),
        progress=None if progress is None else lambda done, total: progress(subject.name, done, total),
    )
    if path is not None:
        save_answers(path, answers)
    return answers


def _notes(opened: Opened, judge: Judge | None) -> list[str]:
    if judge is None or judge.id not in opened.teachers:
        return []
    return [f"The judge {judge.id} was a teacher of this student: its CLIPScore is not independent."]


def _write(path: Path, value: object) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        partial.replace(path)
