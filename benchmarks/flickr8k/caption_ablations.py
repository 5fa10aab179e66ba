"""What the captioning teacher gives the student: short trainings that differ in one thing, judged on `dev`, greedy.

A run that lies in `caption-ablations.json` is not repeated.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import torch

from benchmarks.flickr8k.captions import CaptionTraining, StudentCaptioner, train_captions, written
from benchmarks.flickr8k.features import MAP
from benchmarks.flickr8k.objects import hallucination
from benchmarks.flickr8k.place import Place
from benchmarks.flickr8k.small import SMALL
from benchmarks.flickr8k.student_stage import train_student_towers
from benchmarks.flickr8k.teaching import open_captions, open_space, vocabulary
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.metrics import Bootstrap
from pocketlens.distill.recipe import LossWeights

__all__ = ["FIRST", "PICTURES", "RUNS", "SHORT", "run"]

PICTURES: Final = 3000
"""Training pictures of each run, the same for all."""

SHORT: Final = CaptionTraining(epochs=1)

FIRST: Final = "human captions alone"
RUNS: Final = {
    FIRST: (False, 0.0),
    "the teacher's caption among the five": (True, 0.0),
    "its likely tokens too": (True, 1.0),
    "human captions alone, its likely tokens": (False, 1.0),
}
"""Whether one of the five captions is the teacher's, and the weight of what it finds likely."""


def run(place: Place) -> None:
    """Train the short runs that are not there; write their figures, and those less the first run's, paired."""
    path = place.out / "caption-ablations.json"
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    if found.keys() >= RUNS.keys():
        return
    student, words, every = train_student_towers(place), vocabulary(place), open_captions(place)
    model = StudentCaptioner(student)
    torch.manual_seed(0)
    model.start(open_space(place, every._replace(maps=every.maps[..., :MAP]), SMALL.width))
    start = {name: value.clone() for name, value in student.state_dict().items()}
    part = slice(PICTURES)
    lesson = every._replace(
        maps=every.maps[:, part, :, :MAP],
        human=every.human[part],
        teacher=None if every.teacher is None else every.teacher[part],
        likely=None if every.likely is None else every.likely.part(part),
    )
    for name, (with_caption, weight) in RUNS.items():
        if name in found:
            continue
        began = time.process_time()
        student.load_state_dict(start)
        training = msgspec.structs.replace(SHORT, losses=LossWeights(token=weight))
        train_captions(model, lesson if with_caption else lesson.without_its_caption(), training)
        seconds = time.process_time() - began
        texts = written(model, words, place.features("dev").grids[0][..., :MAP])
        found[name] = {"seconds": seconds, "different": len(set(texts)), "captions": texts}
        found[name] |= _judged(texts, found[FIRST]["captions"], place.split("dev").captions)
        place.write("caption-ablations", found)


def _judged(own: Sequence[str], first: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the figures of the captions `own`, and those less the figures of `first`, picture by picture."""
    bootstrap = Bootstrap(len(own), seed=0)
    ours, theirs = (
        caption_figures(texts, references, bootstrap=bootstrap) | hallucination(texts, references, bootstrap=bootstrap)
        for texts in (own, first)
    )
    less = {name: bootstrap.difference(figure, theirs[name]) for name, figure in ours.items()}
    built: dict[str, Any] = msgspec.to_builtins({"dev": ours, f"less {FIRST}": less})
    return built
