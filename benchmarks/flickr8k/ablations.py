"""The stage `ablations`: one change at a time, short runs of the towers from the closed forms, judged on `dev`."""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import MAP
from benchmarks.flickr8k.small import Lesson, as_maps, encoded, new_student, start_towers
from benchmarks.flickr8k.stages import Place, judged_recall, open_lesson, vocabulary
from benchmarks.flickr8k.towers import train_towers
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, retrieval_ranks
from pocketlens.distill.recipe import LossWeights
from pocketlens.distill.students.student import Student

__all__ = ["PICTURES", "RUNS", "SHORT", "dev_vectors", "first_hits", "part_of", "run"]

PICTURES: Final = 1000
"""Training pictures of each run, the same for all."""

SHORT: Final = StudentTraining(epochs=2, batch=256, learning_rate=2e-4)
RUNS: Final[dict[str, Mapping[str, Any]]] = {
    "all losses, 4 views": {},
    "without contrastive": {"losses": LossWeights(contrastive=0.0)},
    "without affinity": {"losses": LossWeights(affinity=0.0)},
    "without feature": {"losses": LossWeights(feature=0.0)},
    "1 view": {"views": 1},
}
"""What each run does differently; every one changes the first in one thing."""


def run(place: Place) -> None:
    """Train each short run and write its recall on `dev`, and how far it is from the first one's."""
    whole, tokenizer = open_lesson(place), vocabulary(place)
    student = new_student(tokenizer, place.weights)
    directions = start_towers(student, tokenizer, place.out / "student" / "tokenizer.json", whole, "closed form")
    start = {name: value.clone() for name, value in student.state_dict().items()}
    lesson = part_of(whole, PICTURES)
    found: dict[str, Any] = {"closed form, no training": _judged(place, student.eval(), tokenizer, None)[0]}
    first: NDArray[np.float64] | None = None
    for name, change in RUNS.items():
        training = msgspec.structs.replace(SHORT, batch=min(SHORT.batch, len(lesson.captions)), **change)
        training = msgspec.structs.replace(training, views=min(training.views, place.training_views))
        began = time.process_time()
        student.load_state_dict(start)
        train_towers(student, tokenizer, lesson, training, directions=directions)
        seconds = time.process_time() - began
        figures, hits = _judged(place, student.eval(), tokenizer, first)
        first = hits if first is None else first
        found[name] = {"seconds": seconds, **figures}
        place.write("ablations", found)


def part_of(lesson: Lesson, pictures: int) -> Lesson:
    """Return `lesson` with no more than `pictures` of its pictures, chosen by chance."""
    rows = np.sort(np.random.default_rng(0).permutation(len(lesson.captions))[:pictures])
    return Lesson(
        maps=lesson.maps[:, rows],
        captions=[lesson.captions[row] for row in rows],
        teacher_images=lesson.teacher_images[:, rows],
        teacher_texts=lesson.teacher_texts[(rows[:, None] * 5 + np.arange(5)).ravel()],
    )


def first_hits(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `(2, N)`: whether a picture finds a text of its own first, and the share of its texts that find it so."""
    owners = np.repeat(np.arange(len(images)), 5)
    of_images, of_texts = retrieval_ranks(images, texts, owners)
    return np.stack([of_images <= 1, (of_texts <= 1).reshape(-1, 5).mean(axis=1)]).astype(np.float64)


def _judged(
    place: Place, student: Student, tokenizer: Tokenizer, first: NDArray[np.float64] | None
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Return the figures on `dev`, R@1 less the first run's picture by picture, and what is hit at once."""
    images, texts = dev_vectors(place, student, tokenizer)
    figures, hits = judged_recall(images, texts), first_hits(images, texts)
    less: dict[str, Figure] = {}
    if first is not None:
        bootstrap = Bootstrap(len(images), seed=0)
        less = {name: bootstrap.mean(mine) for name, mine in zip(("i2t", "t2i"), hits - first, strict=True)}
    return {"dev": msgspec.to_builtins(figures), "R@1 less the first": msgspec.to_builtins(less)}, hits


@torch.inference_mode()
def dev_vectors(
    place: Place, student: Student, tokenizer: Tokenizer
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the student's image and text vectors of `dev`."""
    maps = torch.from_numpy(place.features("dev").grids[0][..., :MAP].astype(np.float32))
    images: Tensor = student.image_encoder.heads(as_maps(maps))[0]
    ids = torch.from_numpy(encoded(tokenizer, [text for texts in place.split("dev").captions for text in texts]))
    return images.numpy(), torch.cat([student.text_encoder(part) for part in ids.split(250)]).numpy()
