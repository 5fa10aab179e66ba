"""The stage `ablations`: one change at a time, short trainings of the towers from the closed forms, judged on `dev`.

A run that lies in the output folder is not repeated: its figures are in `ablations.json`, its hits in `ablations/`.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import MAP
from benchmarks.flickr8k.judged import judged_recall
from benchmarks.flickr8k.paired import hits, less
from benchmarks.flickr8k.place import Place
from benchmarks.flickr8k.small import as_maps, encoded, new_student, start_towers
from benchmarks.flickr8k.student_stage import open_lesson
from benchmarks.flickr8k.teaching import vocabulary
from benchmarks.flickr8k.towers import train_towers
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.recipe import LossWeights
from pocketlens.distill.students.student import Student

__all__ = ["FIRST", "RUNS", "SHORT", "START", "dev_vectors", "run"]

SHORT: Final = StudentTraining(epochs=3)
"""The first round of `student_stage.TOWERS` in half its epochs."""

START: Final = "closed form, no training"
FIRST: Final = "all losses, 4 views"
RUNS: Final[dict[str, Mapping[str, Any]]] = {
    FIRST: {},
    "without contrastive": {"losses": LossWeights(contrastive=0.0)},
    "without affinity": {"losses": LossWeights(affinity=0.0)},
    "without feature": {"losses": LossWeights(feature=0.0)},
    "1 view": {"views": 1},
    "another seed": {"seed": 1},
}
"""What each run does differently; every one changes the first in one thing. The last shows what chance does."""


def run(place: Place) -> None:
    """Train each short run that is not there; write its recall on `dev`, less the start's and less the first run's."""
    path = place.out / "ablations.json"
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    if found.keys() >= {START, *RUNS}:
        return
    lesson, tokenizer = open_lesson(place), vocabulary(place)
    student = new_student(tokenizer, place.weights)
    directions = start_towers(student, tokenizer, place.out / "student" / "tokenizer.json", lesson, "closed form")
    start = {name: value.clone() for name, value in student.state_dict().items()}
    _judge(place, student.eval(), tokenizer, START, 0.0, found)
    for name, change in RUNS.items():
        if name in found:
            continue
        training = msgspec.structs.replace(SHORT, batch=min(SHORT.batch, len(lesson.captions)), **change)
        training = msgspec.structs.replace(training, views=min(training.views, place.training_views))
        began = time.process_time()
        student.load_state_dict(start)
        train_towers(student, tokenizer, lesson, training, directions=directions)
        _judge(place, student.eval(), tokenizer, name, time.process_time() - began, found)


def _judge(
    place: Place, student: Student, tokenizer: Tokenizer, name: str, seconds: float, found: dict[str, Any]
) -> None:
    """Write the figures of a run on `dev` beside those in `found`."""
    images, texts = dev_vectors(place, student, tokenizer)
    path = _path(place, name)
    path.parent.mkdir(exist_ok=True)
    np.save(path, own := hits(images, texts))
    found[name] = msgspec.to_builtins({"seconds": seconds, "dev": judged_recall(images, texts)})
    for other in (START, FIRST):
        if name != other and other in found:
            known: NDArray[np.float64] = np.load(_path(place, other))
            found[name][f"less {other}"] = msgspec.to_builtins(less(own, known))
    place.write("ablations", found)


def _path(place: Place, name: str) -> Path:
    return place.out / "ablations" / f"{name.replace(',', '').replace(' ', '-')}.npy"


@torch.inference_mode()
def dev_vectors(
    place: Place, student: Student, tokenizer: Tokenizer
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the student's image and text vectors of `dev`."""
    maps = torch.from_numpy(place.features("dev").grids[0][..., :MAP].astype(np.float32))
    images: Tensor = student.image_encoder.heads(as_maps(maps))[0]
    ids = torch.from_numpy(encoded(tokenizer, [text for texts in place.split("dev").captions for text in texts]))
    return images.numpy(), torch.cat([student.text_encoder(part) for part in ids.split(250)]).numpy()
