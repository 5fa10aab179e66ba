"""The students that `benchmarks.compression` compares, each trained into a folder of its own and kept there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.compression.pruning import train_pruned
from pocketlens.distill.compression.qat import train_quantized
from pocketlens.distill.data.sample import Sample, read_samples
from pocketlens.distill.phases import training_heads
from pocketlens.distill.pictures import load_pixels
from pocketlens.distill.recipe import QatRecipe, Recipe, read_recipe
from pocketlens.distill.recipe_phases import PruningRecipe
from pocketlens.distill.reinforced import read_reinforced
from pocketlens.distill.students.inheritance import inherit
from pocketlens.distill.students.student import Student, load_student, preprocess_spec
from pocketlens.distill.token_cache import token_ids
from pocketlens.distill.train import Progress, train

__all__ = ["ARMS", "Bench", "Plan", "open_bench", "student_folder"]

_EMA: Final = 0.97  # half of the weights' average is younger than 23 steps, for runs of some hundred


class Plan(NamedTuple):
    """How much is trained.

    Attributes:
        steps: of all trainings but the one for int8.
        qat_steps: of that one.
        light, heavy: shares of (channels, hidden units) that the two prunings take away.
        rate, low_rate: peak learning rates of what starts from trained weights.
    """

    steps: int = 300
    qat_steps: int = 80
    light: tuple[float, float] = (0.25, 0.5)
    heavy: tuple[float, float] = (0.4, 0.75)
    rate: float = 1e-3
    low_rate: float = 2e-4


class Bench(NamedTuple):
    """A finished run, and where the comparison is kept.

    Attributes:
        run: the folder of the run's student.
        folder: the run's data set.
        recipe: the run's, with an average that fits short trainings, on one thread.
        data, tokenizer, dim: what is learnt from, the student's tokenizer, the width of the teacher's embeddings.
        train, test: samples.
        whole: the run's student.
        out: where the comparison is kept.
    """

    run: Path
    folder: Path
    recipe: Recipe
    data: TrainingSet
    tokenizer: Tokenizer
    dim: int
    train: list[Sample]
    test: list[Sample]
    whole: Student
    out: Path


def open_bench(work: Path, out: Path, *, pictures: int) -> Bench:
    """Return what the distillation folder `work` holds; decoded pixels are cached in `out`.

    Raises:
        DataError: the run is not finished.
    """
    run = work / "student"
    whole, tokenizer = load_student(run)
    recipe = read_recipe(run / "recipe.toml")
    settings = msgspec.structs.replace(recipe.train, ema=_EMA, patience=0, validate_every=0)
    recipe = msgspec.structs.replace(recipe, train=settings, threads=1)
    samples = list(read_samples(work / "data", "train")[:])
    reinforced = read_reinforced(sorted((work / "reinforced").glob("shard-*.safetensors")))
    pixels = load_pixels(
        [sample.picture(work / "data") for sample in samples],
        preprocess_spec(whole.config),
        cache=out / "cache",
        workers=1,
        progress=lambda done, total: None,
    )
    weights = recipe.train.losses
    data = TrainingSet(
        samples,
        pixels,
        reinforced,
        token_ids(samples, reinforced, tokenizer, cache=out / "cache"),
        teacher_caption_share=weights.sequence / (weights.caption + weights.sequence) if weights.sequence else 0.0,
        with_concepts=weights.concepts > 0,
        with_alternatives=weights.token > 0,
        seed=recipe.seed,
    )
    test = list(read_samples(work / "data", "test")[:pictures])
    return Bench(run, work / "data", recipe, data, tokenizer, reinforced.dim, samples, test, whole, out)


def student_folder(bench: Bench, arm: str, plan: Plan) -> Path:
    """Return the folder of the student `arm`, one of `ARMS`, trained now or by an earlier call."""
    if arm == "whole":
        return bench.run
    folder = bench.out / "students" / arm
    if not (folder / "student.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bench.run / "tokenizer.json", folder / "tokenizer.json")
        ARMS[arm](bench, plan, folder)
    return folder


def _longer(bench: Bench, plan: Plan, folder: Path) -> None:
    _train(bench, plan, folder, bench.whole, rate=plan.rate, heads=training_heads(bench.run))


def _pruned(choose: Callable[[Plan], tuple[tuple[float, float], float]]) -> Callable[[Bench, Plan, Path], None]:
    def make(bench: Bench, plan: Plan, folder: Path) -> None:
        (channels, units), rate = choose(plan)
        settings = PruningRecipe(steps=plan.steps, channels=channels, units=units, learning_rate=rate)
        _relearn(train_pruned, bench, msgspec.structs.replace(bench.recipe, pruning=settings), folder)

    return make


def _quantized(bench: Bench, plan: Plan, folder: Path) -> None:
    recipe = msgspec.structs.replace(bench.recipe, qat=QatRecipe(steps=plan.qat_steps, learning_rate=2e-4))
    _relearn(train_quantized, bench, recipe, folder)


def _relearn(train: Callable[..., Student], bench: Bench, recipe: Recipe, folder: Path) -> None:
    train(
        recipe,
        bench.data,
        bench.tokenizer,
        bench.whole,
        teacher_dim=bench.dim,
        run=folder,
        heads=training_heads(bench.run),
        progress=_told,
    )


def _inherited(bench: Bench, plan: Plan, folder: Path) -> None:
    student = _half(bench)
    inherit(student, bench.whole)
    _train(bench, plan, folder, student, rate=bench.recipe.train.learning_rate)


def _scratch(bench: Bench, plan: Plan, folder: Path) -> None:
    _train(bench, plan, folder, _half(bench), rate=bench.recipe.train.learning_rate)


def _half(bench: Bench) -> Student:
    """Return a new student of the same backbone, half as wide behind it, with two layers for three."""
    torch.manual_seed(bench.recipe.seed)
    config = bench.whole.config
    return Student(
        msgspec.structs.replace(
            config,
            width=config.width // 2,
            heads=config.heads // 2,
            text_layers=max(1, config.text_layers * 2 // 3),
            decoder_layers=max(1, config.decoder_layers * 2 // 3),
        )
    )


def _train(
    bench: Bench,
    plan: Plan,
    folder: Path,
    start: Student,
    *,
    rate: float,
    heads: dict[str, Tensor] | None = None,
) -> None:
    settings = msgspec.structs.replace(bench.recipe.train, steps=plan.steps, learning_rate=rate)
    train(
        msgspec.structs.replace(bench.recipe, train=settings),
        bench.data,
        bench.tokenizer,
        teacher_dim=bench.dim,
        run=folder,
        start=start,
        heads=heads,
        progress=_told,
    )


def _told(at: Progress) -> None:
    if at.step % 25 == 0:
        print(f"  {at.step}/{at.steps} loss {at.loss:.3f}, {at.images_per_s:.0f} images/s", flush=True)


ARMS: Final[dict[str, Callable[[Bench, Plan, Path], None]]] = {
    "quantized": _quantized,
    "pruned": _pruned(lambda plan: (plan.light, plan.rate)),
    "pruned-low-rate": _pruned(lambda plan: (plan.light, plan.low_rate)),
    "inherited": _inherited,
    "scratch": _scratch,
    "pruned-more": _pruned(lambda plan: (plan.heavy, plan.rate)),
    "longer": _longer,
}
"""What is trained beside the run's own student, `whole`; `longer` is that one trained on, the others' yardstick."""
