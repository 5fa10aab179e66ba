"""A distillation recipe: one TOML file, strictly typed, resolved and saved beside what it made."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomli_w
from msgspec import Meta

from pocketlens.core.errors import RecipeError, storage_errors
from pocketlens.distill.data.recipe import DataRecipe
from pocketlens.distill.recipe_phases import PruningRecipe, QatRecipe, SelfCriticalRecipe
from pocketlens.distill.students.config import PRESETS, StudentConfig

__all__ = [
    "DataRecipe",
    "LossWeights",
    "PruningRecipe",
    "QatRecipe",
    "Recipe",
    "ReinforceRecipe",
    "SelfCriticalRecipe",
    "StudentRecipe",
    "TeacherPaths",
    "TrainRecipe",
    "read_recipe",
    "write_recipe",
]

Positive = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(ge=0.0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all recipe tables: immutable, unknown keys refused."""


class TeacherPaths(_Table, frozen=True, kw_only=True):
    """Who the teachers are; see `pocketlens.distill.teachers.opening` for names.

    Attributes:
        embedder: one name, or several for an ensemble.
        captioner: one name.
        embedder_licence, captioner_licence: where a teacher brings no card of its own, as models on a hub.
        prompt: what a chat model is asked; empty for a plain request.
        max_tokens: captions are cut after this many of the captioner's tokens.
    """

    embedder: str | tuple[str, ...] = "builtin"
    captioner: str = "builtin"
    embedder_licence: str = ""
    captioner_licence: str = ""
    prompt: str = ""
    max_tokens: Positive = 32


class ReinforceRecipe(_Table, frozen=True, kw_only=True):
    """What the teachers are asked, and how their answers are kept.

    Attributes:
        views: seeded augmentations of each picture that the embedding teacher sees; the first changes nothing.
        augment: which augmentations, see `pocketlens.distill.augment`.
        captions: captions that the captioning teacher writes about each picture; a single one is the greedy one, more
            come from beam search.
        top_k: likeliest tokens that are kept at each position of a written caption; 0 keeps none.
        store: how embeddings are kept: float16, or int8 with a scale for each vector.
        shard: pictures a shard; a kill loses at most one shard's work.
    """

    views: Positive = 2
    augment: Literal["still", "photo"] = "still"
    captions: Positive = 1
    top_k: Annotated[int, Meta(ge=0, le=64)] = 0
    store: Literal["float16", "int8"] = "float16"
    shard: Positive = 1000


class StudentRecipe(_Table, frozen=True, kw_only=True):
    """Which student is trained.

    Attributes:
        preset: the sizes.
        backbone_weights: a safetensors file of the backbone's weights by their timm names; empty for random ones.
        start: folder of a larger student whose weights this one inherits; its tokenizer is taken too.
        tokenizer: `bpe`, trained on the captions at hand, or the captioning teacher's own (for token-level KD).
    """

    preset: str = "nano"
    tokenizer: Literal["bpe", "captioner"] = "bpe"
    backbone_weights: str = ""
    start: str = ""


class LossWeights(_Table, frozen=True, kw_only=True):
    """Weights of the terms of the loss; 0 switches a term off.

    Attributes:
        contrastive: InfoNCE of the student's pictures and texts (Radford et al. 2021).
        affinity: KL between the teacher's and the student's similarity matrices (TinyCLIP, Wu et al. 2023).
        feature: squared distance of a linear projection of the student's embedding to the teacher's,
            pictures and texts (CLIP-KD, Yang et al. 2024, section 3.3).
        caption: cross-entropy of the human captions.
        sequence: cross-entropy of the teacher's caption (sequence-level KD, Kim & Rush 2016).
        token: cross-entropy to the captioning teacher's likeliest tokens (token-level KD, Kim & Rush 2016, section
            3.1); needs `reinforce.top_k` and `student.tokenizer = "captioner"`.
        interactive: InfoNCE of the student's pictures with the teacher's texts and the other way round (CLIP-KD,
            section 3.5), through the projection of `feature`.
        concepts: cross-entropy of the words that a picture's captions agree on, predicted by a head of its own
            from the pooled features (after Fang et al. 2015; see `pocketlens.distill.concepts`).
    """

    contrastive: Weight = 1.0
    affinity: Weight = 1.0
    feature: Weight = 1.0
    caption: Weight = 1.0
    sequence: Weight = 1.0
    token: Weight = 0.0
    interactive: Weight = 0.0
    concepts: Weight = 0.0

    @property
    def compares(self) -> bool:
        """Whether any term looks at pairs of pictures."""
        return bool(self.contrastive or self.affinity or self.interactive)


class TrainRecipe(_Table, frozen=True, kw_only=True):
    """The optimisation. Rates are AdamW's, warmed up linearly and brought down by half a cosine.

    Attributes:
        steps: optimizer steps.
        batch: pictures a step, over all processes.
        learning_rate, weight_decay, warmup, clip_norm: the peak rate, the decay of matrices, the share of the steps
            that the rate rises for, and what the gradient's norm is cut to.
        ema: decay of the average of the weights, which is what is saved.
        teacher_temperature: what the teacher's similarities are divided by.
        checkpoint_every: steps between checkpoints.
        micro_batches: in so many rounds a batch is seen; memory is that of one, the loss that of the whole batch.
        precision: of the forward pass; bfloat16 is autocast.
        validate_every: steps between looks at the validation split; 0 for none.
        patience: so many looks without a better one end the training; 0 goes on to the end.
        losses: weights of the terms.
    """

    steps: Positive
    batch: Annotated[int, Meta(ge=2)] = 128
    learning_rate: Annotated[float, Meta(gt=0.0)] = 2e-3
    weight_decay: Weight = 0.05
    warmup: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    clip_norm: Annotated[float, Meta(gt=0.0)] = 1.0
    ema: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.99
    teacher_temperature: Annotated[float, Meta(gt=0.0)] = 0.05
    checkpoint_every: Positive = 100
    micro_batches: Positive = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    validate_every: Annotated[int, Meta(ge=0)] = 0
    patience: Annotated[int, Meta(ge=0)] = 0
    losses: LossWeights = LossWeights()


class Recipe(_Table, frozen=True, kw_only=True):
    """A whole distillation: `train`, then `pruning`, `self_critical` and `qat` where they are switched on."""

    name: str
    seed: Annotated[int, Meta(ge=0)] = 20261122
    threads: Annotated[int, Meta(ge=1)] = 2
    licence: str = "Apache-2.0"
    teachers: TeacherPaths = TeacherPaths()
    data: DataRecipe
    cache_pixels: bool = True
    reinforce: ReinforceRecipe = ReinforceRecipe()
    student: StudentRecipe = StudentRecipe()
    train: TrainRecipe
    pruning: PruningRecipe = PruningRecipe()
    self_critical: SelfCriticalRecipe = SelfCriticalRecipe()
    qat: QatRecipe = QatRecipe()

    def preset(self) -> StudentConfig:
        """Return the preset that the recipe names.

        Raises:
            RecipeError: there is no such preset.
        """
        if self.student.preset not in PRESETS:
            raise RecipeError(
                "student.preset",
                expected=f"one of {', '.join(sorted(PRESETS))}",
                found=self.student.preset,
                remedy="Correct the recipe.",
            )
        return PRESETS[self.student.preset]

    def student_config(self, vocab_size: int) -> StudentConfig:
        """Return the preset with the size that the trained vocabulary came out with."""
        return msgspec.structs.replace(self.preset(), vocab_size=vocab_size)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in the TOML file `path`.

    Raises:
        RecipeError: no such file, no TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), type=Recipe)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(
            f"recipe {path}",
            expected="a TOML recipe with the keys that docs/recipes.md lists",
            found=str(error),
            remedy="Correct the file.",
        ) from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe, every default spelled out."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(msgspec.to_builtins(recipe)), encoding="utf-8")
