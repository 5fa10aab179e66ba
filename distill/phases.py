"""What follows the training where a recipe says so: pruning, then training for CIDEr, then training for int8.

Pruning comes first: it makes another student, which learns all its losses again, and cross-entropy would undo what was
trained for CIDEr. Training for int8 comes last, for any other training makes the ranges of the activations stale.

Each phase has a folder of its own under the run's, with checkpoint, curves and the student that it ended with; the
run's folder holds the last one's. Phases can be added to a finished run: what was done before them is kept.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import Tensor

from pocketlens.core.errors import storage_errors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.checkpoint import load_state
from pocketlens.distill.distributed import barrier, place
from pocketlens.distill.recipe import PruningRecipe, QatRecipe, Recipe, SelfCriticalRecipe, write_recipe
from pocketlens.distill.students.student import Student, save_student
from pocketlens.distill.train import Progress
from pocketlens.distill.validation import Validation

__all__ = ["Setting", "run_phases", "training_heads", "without_phases"]


class Setting(NamedTuple):
    """What all phases share.

    Attributes:
        data: what to learn from.
        tokenizer: the student's.
        teacher_dim: width of the teacher's embeddings.
        run: the folder of the training before.
        validation: pictures to look at, if the recipe does.
        progress: told (phase, where it is) after every step.
    """

    data: TrainingSet
    tokenizer: Tokenizer
    teacher_dim: int
    run: Path
    validation: Validation | None
    progress: Callable[[str, Progress], None]


def without_phases(recipe: Recipe) -> Recipe:
    """Return the recipe of the training alone."""
    return msgspec.structs.replace(recipe, pruning=PruningRecipe(), self_critical=SelfCriticalRecipe(), qat=QatRecipe())


def run_phases(recipe: Recipe, student: Student, setting: Setting) -> Student:
    """Take `student`, in eval mode, through the phases of `recipe`, and return what came of it.

    Raises:
        TrainingError: a loss is not finite, or a phase's folder belongs to another recipe.
        RecipeError: a phase does not fit the student or the batch.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    plan, heads_from = without_phases(recipe), setting.run
    if recipe.pruning.steps:
        from pocketlens.distill.compression.pruning import train_pruned

        plan = msgspec.structs.replace(plan, pruning=recipe.pruning)
        student = _relearnt(train_pruned, "pruned", plan, student, setting, heads_from)
        heads_from = setting.run / "pruned"
    if recipe.self_critical.steps:
        from pocketlens.distill.self_critical import train_self_critical

        plan = msgspec.structs.replace(plan, self_critical=recipe.self_critical)
        with _phase(setting, "self_critical") as (folder, progress):
            student = train_self_critical(plan, setting.data, setting.tokenizer, student, run=folder, progress=progress)
    if recipe.qat.steps:
        from pocketlens.distill.compression.qat import train_quantized

        plan = msgspec.structs.replace(plan, qat=recipe.qat)
        student = _relearnt(train_quantized, "quantized", plan, student, setting, heads_from)
    if place().leads:
        save_student(setting.run, student)
        write_recipe(setting.run / "recipe.toml", recipe)
    barrier()
    return student


def _relearnt(
    train: Callable[..., Student], name: str, plan: Recipe, student: Student, setting: Setting, heads_from: Path
) -> Student:
    """Take `student` through a phase that learns all losses again, and so needs the heads of the training before."""
    with _phase(setting, name) as (folder, progress):
        return train(
            plan,
            setting.data,
            setting.tokenizer,
            student,
            teacher_dim=setting.teacher_dim,
            run=folder,
            heads=training_heads(heads_from),
            validation=setting.validation,
            progress=progress,
        )


@contextmanager
def _phase(setting: Setting, name: str) -> Iterator[tuple[Path, Callable[[Progress], None]]]:
    """Give a phase its folder, with the tokenizer in it, and whom it tells its progress."""
    folder = setting.run / name
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(setting.run / "tokenizer.json", folder / "tokenizer.json")
    yield folder, lambda at: setting.progress(name, at)


def training_heads(run: Path) -> dict[str, Tensor]:
    """Return the averaged weights of what only training has, from the checkpoint in `run`; empty without one.

    Raises:
        DataError: the checkpoint is damaged.
    """
    state = load_state(run / "checkpoint.pt") or {"average": {}}
    given = {str(name).removeprefix("module."): value for name, value in state["average"].items()}
    return {name: value for name, value in given.items() if name.startswith(("projection.", "concept_head."))}
