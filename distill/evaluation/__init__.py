"""Evaluation: teachers, students and bundles judged by one harness, with an interval on every number.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.distill.evaluation.agreement import krippendorff_alpha
    from pocketlens.distill.evaluation.captions import caption_figures
    from pocketlens.distill.evaluation.harness import Evaluation, evaluate, token_identity
    from pocketlens.distill.evaluation.judged import (
        Examined,
        Judged,
        JudgedCaption,
        JudgedLens,
        JudgedStudent,
        JudgedTeachers,
    )
    from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
    from pocketlens.distill.evaluation.objects import ObjectTable, object_table
    from pocketlens.distill.evaluation.questions import Questions, prepare_judge, prepare_questions
    from pocketlens.distill.evaluation.rating_sheet import read_key, write_sheet
    from pocketlens.distill.evaluation.ratings import rating_report, read_ratings
    from pocketlens.distill.evaluation.report import write_report
    from pocketlens.distill.evaluation.scorecard import Scorecard
    from pocketlens.distill.evaluation.session import Outcome, evaluate_subjects
    from pocketlens.distill.evaluation.subjects import Subject, subjects_of

__all__ = [
    "Bootstrap",
    "Evaluation",
    "Examined",
    "Figure",
    "Judged",
    "JudgedCaption",
    "JudgedLens",
    "JudgedStudent",
    "JudgedTeachers",
    "ObjectTable",
    "Outcome",
    "Questions",
    "Scorecard",
    "Subject",
    "caption_figures",
    "evaluate",
    "evaluate_subjects",
    "krippendorff_alpha",
    "object_table",
    "prepare_judge",
    "prepare_questions",
    "rating_report",
    "read_key",
    "read_ratings",
    "subjects_of",
    "token_identity",
    "write_report",
    "write_sheet",
]

_HOMES = {
    "Bootstrap": "metrics",
    "Evaluation": "harness",
    "Figure": "metrics",
    "ObjectTable": "objects",
    "Outcome": "session",
    "Questions": "questions",
    "Scorecard": "scorecard",
    "Subject": "subjects",
    "caption_figures": "captions",
    "evaluate": "harness",
    "evaluate_subjects": "session",
    "krippendorff_alpha": "agreement",
    "object_table": "objects",
    "prepare_judge": "questions",
    "prepare_questions": "questions",
    "rating_report": "ratings",
    "read_key": "rating_sheet",
    "read_ratings": "ratings",
    "subjects_of": "subjects",
    "token_identity": "harness",
    "write_report": "report",
    "write_sheet": "rating_sheet",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'judged')}"), name)
