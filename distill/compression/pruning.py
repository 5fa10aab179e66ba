"""Structured pruning with fine-tuning: the student is made narrower, then learns on from the same teachers.

The cut is made once (`cutting`); what is left is a dense, smaller student that every target runs faster, without sparse
kernels. It then learns with the losses, batches, average, checkpoints and resume of `pocketlens.distill.train`.

A run that is killed cuts again when it goes on, from the same student with the same pictures, and so into the same
shape; its checkpoint brings the weights.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.compression.cutting import cut
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.students.student import Student
from pocketlens.distill.train import Progress, train
from pocketlens.distill.validation import Validation

__all__ = ["cut_by_loss", "train_pruned"]

_BATCHES: Final = 8  # that the gradients are seen on
_FORGETS: Final = 8.0  # the average keeps exp(-8) of the student that was just cut


def train_pruned(
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
    """Cut `student` as `recipe.pruning` says, train what is left, and return what became of it.

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
        RecipeError: see `train`; or the backbone cannot be cut.
        TrainingError: see `train`.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    narrow = cut_by_loss(recipe, data, student, teacher_dim=teacher_dim, heads=heads or {}, pad_id=tokenizer.pad_id)
    return train(
        _phase(recipe),
        data,
        tokenizer,
        teacher_dim=teacher_dim,
        run=run,
        start=narrow,
        validation=validation,
        progress=progress,
        heads=heads,
    )


def cut_by_loss(
    recipe: Recipe,
    data: TrainingSet,
    student: Student,
    *,
    teacher_dim: int,
    heads: Mapping[str, Tensor],
    pad_id: int,
) -> Student:
    """Return `student` cut as `recipe.pruning` says, with gradients of the recipe's losses where they are asked for.

    A weight's gradient is the mean of its size over batches: at the end of a training gradients cancel each other.

    Args:
        recipe: the whole recipe.
        data: what the gradients are seen on.
        student: in eval mode; it is not changed.
        teacher_dim: width of the teacher's embeddings.
        heads: see `train`.
        pad_id: the tokenizer's.

    Raises:
        RecipeError: the backbone cannot be cut.
    """
    settings, learner = recipe.pruning, copy.deepcopy(student).eval().requires_grad_()
    learner.ranges = {}
    if settings.importance == "taylor":
        torch.manual_seed(recipe.seed)  # of heads that are not given
        model = Objective(learner, teacher_dim=teacher_dim, concepts=torch.from_numpy(data.concepts.weights)).eval()
        model.load_state_dict(heads, strict=False)
        sizes = {name: torch.zeros_like(weight) for name, weight in learner.named_parameters()}
        for step in range(_BATCHES):
            learner.zero_grad(set_to_none=True)
            batch = data.batch(step, recipe.train.batch)
            look = model.look(batch, batch, recipe.train, pad_id)
            terms = look.terms | model.compare(look.images, look.texts, batch, recipe.train)
            torch.stack(list(terms.values())).sum().backward()
            for name, weight in learner.named_parameters():
                if weight.grad is not None:
                    sizes[name] += weight.grad.abs() / _BATCHES
        for name, weight in learner.named_parameters():
            weight.grad = sizes[name]
    return cut(learner, channels=settings.channels, units=settings.units, importance=settings.importance)


def _phase(recipe: Recipe) -> Recipe:
    """Return the recipe with the steps and the rate of this phase, and an average that is done with the cut by then."""
    settings = recipe.pruning
    changed = msgspec.structs.replace(
        recipe.train,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        ema=min(recipe.train.ema, max(0.0, 1.0 - _FORGETS / settings.steps)),
        patience=0,  # the folder's student is that of the last step, as in the other phases
    )
    return msgspec.structs.replace(recipe, train=changed)
