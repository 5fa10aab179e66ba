"""The stage `ablations`: one change at a time, short runs on the frozen backbone, judged on `dev`."""

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
from benchmarks.flickr8k.small import SMALL, Start, as_maps, encoded, new_student, small_tokenizer, start_towers
from benchmarks.flickr8k.stages import TOWERS, Place, judged_recall, open_lesson
from benchmarks.flickr8k.towers import train_towers
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.recipe import LossWeights
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.student import Student

__all__ = ["RUNS", "Change", "dev_vectors", "run"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one run does differently."""

    training: Mapping[str, Any] = {}
    config: StudentConfig = SMALL
    start: Start = "closed form"


_SHORT: Final = msgspec.structs.replace(TOWERS[0], epochs=1)
RUNS: Final[dict[str, Change]] = {
    "all losses, 4 views": Change(),
    "without contrastive": Change(training={"losses": LossWeights(contrastive=0.0)}),
    "without affinity": Change(training={"losses": LossWeights(affinity=0.0)}),
    "without feature": Change(training={"losses": LossWeights(feature=0.0)}),
    "contrastive only (no teacher)": Change(training={"losses": LossWeights(affinity=0.0, feature=0.0)}),
    "1 view": Change(training={"views": 1}),
    "text tower from MiniLM's word vectors": Change(start="inherited words"),
    "mean of the map alone": Change(config=msgspec.structs.replace(SMALL, image_queries=0)),
    "no dropped words": Change(training={"word_dropout": 0.0}),
    "2 views": Change(training={"views": 2}),
}
"""Every run changes the first one in one thing."""


def run(place: Place) -> None:
    """Train each short run and write its recall on `dev`; a finished run is not repeated."""
    lesson = open_lesson(place)
    vocabulary = place.out / "student" / "tokenizer.json"
    tokenizer = small_tokenizer(vocabulary, lesson.captions)
    path = place.out / "ablations.json"
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    for name, change in RUNS.items():
        training: StudentTraining = msgspec.structs.replace(_SHORT, **change.training)
        if name in found or training.views > place.training_views:
            continue
        began = time.process_time()
        student = new_student(tokenizer, place.weights, config=change.config)
        directions = start_towers(student, tokenizer, vocabulary, lesson, change.start)
        train_towers(student, tokenizer, lesson, training, directions=directions)
        seconds = time.process_time() - began
        figures = judged_recall(*dev_vectors(place, student.eval(), tokenizer))
        found[name] = {"seconds": seconds, "dev": msgspec.to_builtins(figures)}
        place.write("ablations", found)


@torch.inference_mode()
def dev_vectors(
    place: Place, student: Student, tokenizer: Tokenizer
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the student's image and text vectors of `dev`."""
    maps = torch.from_numpy(place.features("dev").grids[0][..., :MAP].astype(np.float32))
    images: Tensor = student.image_encoder.heads(as_maps(maps))[0]
    ids = torch.from_numpy(encoded(tokenizer, [text for texts in place.split("dev").captions for text in texts]))
    return images.numpy(), torch.cat([student.text_encoder(part) for part in ids.split(250)]).numpy()
