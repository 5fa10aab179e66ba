"""Trains a student from a reinforced data set, without any teacher in memory.

A step is a pure function of the weights, the seed and the step's number, so a run that is killed and
started again ends with the same weights, bit for bit on the same machine and thread count. Under `torchrun` the
processes share each step (`pocketlens.distill.step`); the first one alone writes files.
"""

import csv
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pocketlens.core.errors import TrainingError, storage_errors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.checkpoint import load_state, only_run, save_state
from pocketlens.distill.curves import draw_curves
from pocketlens.distill.distributed import Place, barrier, joined
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import Recipe, write_recipe
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.schedule import warmup_cosine
from pocketlens.distill.step import Stepper, Steps, copies_of
from pocketlens.distill.students.student import Student, save_student
from pocketlens.distill.threads import single_threads
from pocketlens.distill.validation import Validation, append_row

__all__ = ["Progress", "train"]

_MAX_LOGIT_SCALE = 4.6052  # ln 100, as in CLIP


class Progress(msgspec.Struct, frozen=True):
    """Where a run is.

    Attributes:
        step, steps: done and in all.
        loss: smoothed.
        images_per_s: pictures a second, over all processes.
        remaining_s: seconds to the end at this rate.
    """

    step: int
    steps: int
    loss: float
    images_per_s: float
    remaining_s: float


class _Run(NamedTuple):
    """All that a run holds while it goes on."""

    recipe: Recipe
    folder: Path
    place: Place
    device: torch.device
    model: Objective
    replicas: Replicas[Objective]
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    best: dict[str, Any]


def train(
    recipe: Recipe,
    data: TrainingSet,
    tokenizer: Tokenizer,
    *,
    teacher_dim: int,
    run: Path,
    start: Student | None = None,
    validation: Validation | None = None,
    progress: Callable[[Progress], None] | None = None,
    heads: Mapping[str, Tensor] | None = None,
    steps: Callable[[Replicas[Objective], Place, torch.device], Steps] | None = None,
    finish: Callable[[Student], Student] = lambda student: student,
) -> Student:
    """Train to `recipe.train.steps`, resuming from the checkpoint in `run`, and return the averaged student.

    The folder gets `recipe.toml`, `checkpoint.pt`, `metrics.csv`, `validation.csv`, `curves.png` and, at the end,
    `student.json` and `student.safetensors`; the caller has put `tokenizer.json` there. With `recipe.train.patience`
    the training may end early, and the student is that of the best look at the validation split.

    Args:
        recipe: the whole recipe.
        data: what to learn from.
        tokenizer: the student's.
        teacher_dim: width of the teacher's embeddings.
        run: the run's folder.
        start: a student to go on from, of the recipe's sizes; by default a new one.
        validation: pictures to look at as the recipe says.
        progress: told after every step.
        heads: weights by their names in `Objective` that an earlier training left: of those parts that no student has.
        steps: makes what makes the gradients; by default `Stepper`, which learns from `data`.
        finish: makes the student that is saved of the one that was trained and averaged.

    Raises:
        TrainingError: the loss is not finite, another process uses the folder, or the folder holds a run of
            another recipe. The last good checkpoint is kept.
        RecipeError: the batch does not divide among processes, copies and micro-batches.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    with joined() as place, only_run(run) if place.leads else nullcontext():
        torch.manual_seed(recipe.seed)
        device = torch.device("cuda", place.rank % torch.cuda.device_count()) if torch.cuda.is_available() else _CPU
        student = start or Student(recipe.student_config(tokenizer.vocab_size))
        weights = torch.from_numpy(data.concepts.weights)
        model = Objective(student, teacher_dim=teacher_dim, concepts=weights).to(device)
        model.to(memory_format=torch.channels_last)
        model.load_state_dict({} if heads is None else heads, strict=False)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.train.ema))
        copies = copies_of(recipe, place)
        with single_threads(copies) as pool:
            replicas = Replicas(model, copies, pool)
            if steps is not None:
                stepper = steps(replicas, place, device)
            else:
                stepper = Stepper(recipe, data, replicas, place, pad_id=tokenizer.pad_id, device=device)
            state = _Run(recipe, run, place, device, model, replicas, average, _optimizer(model, recipe), {})
            _loop(state, stepper, _resume(state), validation, progress)
        student = cast("Objective", average.module).student.to(_CPU)
        if "student" in state.best:
            student.load_state_dict(state.best["student"])
        student = finish(student)
        if place.leads:
            save_student(run, student.eval())
            draw_curves(run)
        barrier()  # whoever comes out of here finds the files
        return student.eval()


_CPU = torch.device("cpu")


def _loop(
    run: _Run,
    stepper: Steps,
    start: int,
    validation: Validation | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    settings, began, smooth = run.recipe.train, time.monotonic(), 0.0
    run.model.train()
    rows: list[dict[str, float]] = []
    run.replicas.spread()
    for step in range(start, settings.steps):
        if _patience_is_over(run):
            return
        terms = stepper.backward(step)
        if not all(map(math.isfinite, terms.values())):
            raise _not_finite(step, terms, run.folder)
        total = sum(terms.values())
        _update(run, step)
        smooth = total if step == start else 0.95 * smooth + 0.05 * total
        rows.append({"step": step, "loss": total, **terms, **stepper.seen})
        done = step + 1
        if progress is not None:
            pace = (time.monotonic() - began) / (done - start)
            left = pace * (settings.steps - done)
            progress(Progress(done, settings.steps, smooth, settings.batch / pace, left))
        if validation is not None and (done % validation.every == 0 or done == settings.steps):
            _validate(run, done, validation)
        if done % settings.checkpoint_every == 0 or done == settings.steps or _patience_is_over(run):
            _checkpoint(run, done, rows)
            rows = []


def _validate(run: _Run, step: int, validation: Validation) -> None:
    """Look at the validation split with the averaged student, and remember it if it is the best so far."""
    student = cast("Objective", run.average.module).student
    found = validation.look(student, run.device)
    if run.place.leads:
        append_row(run.folder / "validation.csv", {"step": step, **found})
    if found["loss"] < run.best.get("loss", math.inf):
        run.best.update(loss=found["loss"], since=0)
        if run.recipe.train.patience:
            run.best["student"] = {name: value.cpu().clone() for name, value in student.state_dict().items()}
    else:
        run.best["since"] = run.best.get("since", 0) + 1


def _patience_is_over(run: _Run) -> bool:
    patience = run.recipe.train.patience
    return bool(patience) and run.best.get("since", 0) >= patience


def _update(run: _Run, step: int) -> None:
    settings = run.recipe.train
    for group in run.optimizer.param_groups:
        group["lr"] = warmup_cosine(
            step,
            total=settings.steps,
            warmup=max(1, round(settings.warmup * settings.steps)),
            peak=settings.learning_rate,
            floor=settings.learning_rate / 100,
        )
    nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip_norm)
    run.optimizer.step()
    with torch.no_grad():
        run.model.student.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
    run.average.update_parameters(run.model)
    run.replicas.spread()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": recipe.train.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.train.learning_rate, betas=(0.9, 0.98), fused=True)


def _resume(run: _Run) -> int:
    """Load the checkpoint if there is one; return the step to go on with."""
    state = load_state(run.folder / "checkpoint.pt")
    if state is None:
        if run.place.leads:
            write_recipe(run.folder / "recipe.toml", run.recipe)
            for name in ("metrics.csv", "validation.csv"):
                (run.folder / name).unlink(missing_ok=True)
        return 0
    if not _is_recipe(state["recipe"], run.recipe):
        raise TrainingError(
            f"run folder {run.folder}",
            expected="the recipe that this run was started with",
            found="a checkpoint of another recipe",
            remedy="Choose another folder, or delete this one to start anew.",
        )
    run.best.update(state["best"])
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _is_recipe(text: str, recipe: Recipe) -> bool:
    try:
        # decoded: in a checkpoint that is older than a key of the recipe the key has its default
        return msgspec.json.decode(text, type=Recipe) == recipe
    except msgspec.ValidationError:
        return False


def _checkpoint(run: _Run, step: int, rows: list[dict[str, float]]) -> None:
    if not run.place.leads:
        return
    state: dict[str, Any] = {
        "step": step,
        "best": run.best,
        "recipe": msgspec.json.encode(run.recipe).decode(),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    save_state(run.folder / "checkpoint.pt", state)
    path = run.folder / "metrics.csv"
    with storage_errors(path):
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)


def _not_finite(step: int, terms: dict[str, float], run: Path) -> TrainingError:
    found = ", ".join(f"{name} {term:.4g}" for name, term in terms.items())
    return TrainingError(
        f"loss at step {step}",
        expected="finite terms",
        found=found,
        remedy=f"Lower the learning rate in the recipe; the last good checkpoint is in {run}.",
    )
