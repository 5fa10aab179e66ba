"""Quantization-aware training: the student goes on learning while its arithmetic is that of its int8 graphs.

The graphs are those that `export` writes for ExecuTorch (see `quantized_student`), so the weights are trained on the
grid that they will stand on, and the ranges of the activations are kept with the student and handed to the export,
which calibrates nothing. Other targets take the trained weights and find ranges of their own.

Losses, batches, average, checkpoints and resume are those of `pocketlens.distill.train`; the concept head is left
out, for an exported graph has no feature map to look at.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import msgspec
import torch
from torch import Tensor

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.compression.quantized_student import QuantizedStudent
from pocketlens.distill.distributed import Place
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.step import Stepper
from pocketlens.distill.students.student import Student
from pocketlens.distill.train import Progress, train
from pocketlens.distill.validation import Validation

__all__ = ["train_quantized"]

_CALIBRATION_STEPS = 8
_FOLLOW = 0.01  # of the way that a range moves towards each batch's


def train_quantized(
    recipe: Recipe,
    data: TrainingSet,
    tokenizer: Tokenizer,
    student: Student,
    *,
    teacher_dim: int,
    run: Path,
    heads: Mapping[str, Tensor] | None = None,
    validation: Validation | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Student:
    """Train `student` for static int8 as `recipe.qat` says and return what became of it, with its ranges.

    The folder gets what `train` writes.

    Args:
        recipe: the whole recipe.
        data: what to learn from.
        tokenizer: the student's.
        student: in eval mode; it is not changed.
        teacher_dim: width of the teacher's embeddings.
        run: the run's folder.
        heads: see `train`.
        validation: see `train`.
        progress: see `train`.

    Raises:
        TrainingError: see `train`; or a weight of the captured graphs is none of the student's.
        RecipeError: see `train`.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    phase = _phase(recipe)
    simulated = QuantizedStudent(copy.deepcopy(student).eval())
    _calibrate(simulated, data, phase)

    def steps(replicas: Replicas[Objective], place: Place, device: torch.device) -> _Steps:
        stepper = Stepper(phase, data, replicas, place, pad_id=tokenizer.pad_id, device=device)
        return _Steps(stepper, replicas, round(recipe.qat.moving * recipe.qat.steps))

    def finish(trained: Student) -> Student:
        result = copy.deepcopy(student)
        cast("QuantizedStudent", trained).write_back(result)
        return result.eval()

    return train(
        phase,
        data,
        tokenizer,
        teacher_dim=teacher_dim,
        run=run,
        start=cast("Student", simulated),  # it answers as one
        validation=validation,
        progress=progress,
        heads=heads,
        steps=steps,
        finish=finish,
    )


def _phase(recipe: Recipe) -> Recipe:
    """Return the recipe with the steps and the rate of this phase."""
    settings = recipe.train
    return msgspec.structs.replace(
        recipe,
        train=msgspec.structs.replace(
            settings,
            steps=recipe.qat.steps,
            learning_rate=recipe.qat.learning_rate,
            losses=msgspec.structs.replace(settings.losses, concepts=0.0),
            # a look would compare float with int8, and the ranges have to stand still before the end
            patience=0,
        ),
    )


@torch.no_grad()
def _calibrate(simulated: QuantizedStudent, data: TrainingSet, phase: Recipe) -> None:
    """Give the ranges their first values: the means of what a few batches reach."""
    size = phase.train.batch
    longest = simulated.config.caption_tokens
    simulated.calibrate(True)
    for step in range(_CALIBRATION_STEPS):
        simulated.follow(1.0 / (step + 1))
        batch = data.batch(step, size)
        _, _, visual = simulated.image_encoder.look(batch.pixels)
        simulated.text_encoder(batch.ids)
        simulated.caption_decoder(visual, batch.ids[:, :longest])
    simulated.calibrate(False)
    simulated.follow(_FOLLOW)


class _Steps:
    """The steps of `Stepper`, with ranges that stand still from one of them on."""

    def __init__(self, stepper: Stepper, replicas: Replicas[Objective], still_from: int) -> None:
        self.seen: dict[str, float] = {}
        self._stepper, self._replicas, self._still_from = stepper, replicas, still_from
        self._held: bool | None = None

    def backward(self, step: int) -> dict[str, float]:
        held = step >= self._still_from
        if held != self._held:  # also after a resume
            self._held = held
            for model in self._replicas:
                student = cast("QuantizedStudent", model.student)
                student.follow(0.0 if held else _FOLLOW)
                if held:
                    student.settle()
        return self._stepper.backward(step)
