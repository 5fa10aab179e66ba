"""Trains a student from a reinforced data set, without any teacher in memory.

A step is a pure function of the weights, the seed and the step's number, so a run that is killed and
started again ends with the same weights, bit for bit on the same machine and thread count.
"""

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pocketlens.core.errors import TrainingError, storage_errors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import Batch, TrainingSet
from pocketlens.distill.checkpoint import load_state, only_run, save_state
from pocketlens.distill.objective import Look, Objective
from pocketlens.distill.recipe import Recipe, write_recipe
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.schedule import warmup_cosine
from pocketlens.distill.students.student import Student, save_student
from pocketlens.distill.threads import single_threads

__all__ = ["Progress", "train"]

_MAX_LOGIT_SCALE = 4.6052  # ln 100, as in CLIP


class Progress(msgspec.Struct, frozen=True):
    """Where a run is: steps done and in all, the smoothed loss, pictures a second of this process."""

    step: int
    steps: int
    loss: float
    images_per_s: float


class _Run(NamedTuple):
    """All that a run holds while it goes on."""

    recipe: Recipe
    folder: Path
    model: Objective
    replicas: Replicas[Objective]
    average: AveragedModel
    optimizer: torch.optim.Optimizer


def train(
    recipe: Recipe,
    data: TrainingSet,
    tokenizer: Tokenizer,
    *,
    teacher_dim: int,
    run: Path,
    progress: Callable[[Progress], None] | None = None,
) -> Student:
    """Train to `recipe.train.steps`, resuming from the checkpoint in `run`, and return the averaged student.

    The folder gets `recipe.toml`, `checkpoint.pt`, `metrics.csv` and, at the end, `student.json` and
    `student.safetensors`; the caller has put `tokenizer.json` there.

    Args:
        recipe: the whole recipe.
        data: what to learn from.
        tokenizer: the student's.
        teacher_dim: width of the teacher's embeddings.
        run: the run's folder.
        progress: told after every step.

    Raises:
        TrainingError: the loss is not finite, another process uses the folder, or the folder holds a run of
            another recipe. The last good checkpoint is kept.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    with only_run(run):
        torch.manual_seed(recipe.seed)
        student = Student(recipe.student_config(tokenizer.vocab_size))
        weights = torch.from_numpy(data.concepts.weights)
        model = Objective(student, teacher_dim=teacher_dim, concepts=weights)
        model.to(memory_format=torch.channels_last)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.train.ema))
        with single_threads(recipe.threads) as pool:
            replicas = Replicas(model, recipe.threads, pool)
            state = _Run(recipe, run, model, replicas, average, _optimizer(model, recipe))
            _loop(state, data, tokenizer.pad_id, _resume(state), progress)
        student = cast("Objective", average.module).student
        save_student(run, student.eval())
        return student


def _loop(run: _Run, data: TrainingSet, pad_id: int, start: int, progress: Callable[[Progress], None] | None) -> None:
    settings, began, smooth = run.recipe.train, time.monotonic(), 0.0
    run.model.train()
    rows: list[dict[str, float]] = []
    run.replicas.spread()
    for step in range(start, settings.steps):
        terms = _backward(run, step, data.batch(step, settings.batch), pad_id)
        total = sum(terms.values())
        _update(run, step)
        smooth = total if step == start else 0.95 * smooth + 0.05 * total
        rows.append({"step": step, "loss": total, **terms})
        if progress is not None:
            rate = (step + 1 - start) * settings.batch / (time.monotonic() - began)
            progress(Progress(step + 1, settings.steps, smooth, rate))
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            _checkpoint(run, step + 1, rows)
            rows = []


def _backward(run: _Run, step: int, batch: Batch, pad_id: int) -> dict[str, float]:
    """Leave the gradients of the batch in the model and return the weighted terms by name."""
    settings, replicas = run.recipe.train, run.replicas
    run.optimizer.zero_grad(set_to_none=True)
    looks = replicas.map(lambda model, part: model.look(part, batch, settings, pad_id), batch.split(len(replicas)))
    # The copies' graphs end at the embeddings; what all pictures say about each other goes on from leaves.
    leaves = [
        [vectors.detach().requires_grad_(vectors.requires_grad) for vectors in (look.images, look.texts)]
        for look in looks
    ]
    images, texts = (torch.cat(vectors) for vectors in zip(*leaves, strict=True))
    shared = run.model.compare(images, texts, batch, settings)
    terms = {name: sum(look.terms[name].item() for look in looks) for name in looks[0].terms}
    terms |= {name: term.item() for name, term in shared.items()}
    if not all(map(math.isfinite, terms.values())):
        raise _not_finite(step, terms, run.folder)
    if shared:
        torch.stack(list(shared.values())).sum().backward()
    replicas.map(_backward_part, list(zip(looks, leaves, strict=True)))
    replicas.gather_gradients()
    return terms


def _backward_part(_: Objective, part: tuple[Look, list[Tensor]]) -> None:
    """Go back through one copy's graph: from its own terms, and from its embeddings' gradients."""
    look, leaves = part
    ends = [
        (vectors, leaf.grad)
        for vectors, leaf in zip((look.images, look.texts), leaves, strict=True)
        if leaf.grad is not None
    ]
    ends += [(term, torch.ones(())) for term in look.terms.values()]
    torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])


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
        write_recipe(run.folder / "recipe.toml", run.recipe)
        (run.folder / "metrics.csv").unlink(missing_ok=True)
        return 0
    if state["recipe"] != msgspec.json.encode(run.recipe).decode():
        raise TrainingError(
            f"run folder {run.folder}",
            expected="the recipe that this run was started with",
            found="a checkpoint of another recipe",
            remedy="Choose another folder, or delete this one to start anew.",
        )
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _checkpoint(run: _Run, step: int, rows: list[dict[str, float]]) -> None:
    state: dict[str, Any] = {
        "step": step,
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
