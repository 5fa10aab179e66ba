"""Evaluation: teachers, students and bundles judged by one harness, with an interval on every number.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.distill.evaluation.captions import caption_figures
    from pocketlens.distill.evaluation.harness import Evaluation, evaluate, token_identity
    from pocketlens.distill.evaluation.judged import (
        Judged,
        JudgedCaption,
        JudgedLens,
        JudgedStudent,
        JudgedTeachers,
    )
    from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, caption_correctness

__all__ = [
    "Bootstrap",
    "Evaluation",
    "Figure",
    "Judged",
    "JudgedCaption",
    "JudgedLens",
    "JudgedStudent",
    "JudgedTeachers",
    "caption_correctness",
    "caption_figures",
    "evaluate",
    "token_identity",
]

_HOMES = {
    "Bootstrap": "metrics",
    "Evaluation": "harness",
    "Figure": "metrics",
    "caption_correctness": "metrics",
    "caption_figures": "captions",
    "evaluate": "harness",
    "token_identity": "harness",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'judged')}"), name)
