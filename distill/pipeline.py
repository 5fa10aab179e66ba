"""The steps of a distillation and the folder that they share.

::

    WORK/data/         the data set: pictures, captions, ground truth
    WORK/cache/        decoded pixels, mapped by whoever needs them; may be deleted
    WORK/reinforced/   what the teachers said, in shards
    WORK/student/      recipe.toml, tokenizer.json, checkpoint.pt, metrics.csv, student.json, student.safetensors

Each step can be run again at any time: what is finished is kept, what is missing is made.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray

from pocketlens.core.bundle import TeacherRecord
from pocketlens.core.errors import RecipeError, storage_errors
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.curate import Embed, curate
from pocketlens.distill.data.recipe import ScenesData
from pocketlens.distill.data.sample import PictureFile, Sample, as_source, extracted, read_samples
from pocketlens.distill.distributed import barrier, joined
from pocketlens.distill.phases import Setting, run_phases, without_phases
from pocketlens.distill.pictures import DecodedPixels, PixelSource, load_pixels
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.reinforce import reinforce
from pocketlens.distill.reinforced import read_reinforced
from pocketlens.distill.scenes import write_dataset
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.inheritance import inherit, load_backbone
from pocketlens.distill.students.student import Student, load_student, preprocess_spec
from pocketlens.distill.teachers.folder import captioner_tokenizer
from pocketlens.distill.teachers.opening import captioner_card, embedder_card, open_captioner, open_embedder
from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher
from pocketlens.distill.token_cache import all_texts, token_ids
from pocketlens.distill.train import Progress, train
from pocketlens.distill.validation import Validation

__all__ = [
    "Report",
    "Teachers",
    "Workspace",
    "data_words",
    "open_teachers",
    "prepare_data",
    "reinforce_data",
    "teacher_records",
    "train_student",
]

Report = Callable[[str, int, int, str], None]
"""Told (step, done, in all, a note such as the loss) as the work goes on."""


class Workspace(NamedTuple):
    """The folder of one distillation."""

    root: Path

    @property
    def data(self) -> Path:
        """The data set."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        """Decoded pixels."""
        return self.root / "cache"

    @property
    def reinforced(self) -> Path:
        """Shards of teacher answers."""
        return self.root / "reinforced"

    @property
    def student(self) -> Path:
        """The training run and its result."""
        return self.root / "student"

    def pictures(self, samples: Sequence[Sample]) -> list[Path]:
        """Return the pictures of `samples` as files; those inside a tar are copied out under `cache`.

        Raises:
            DataError: a tar is not there.
            StorageFull: no space left.
        """
        return [extracted(sample, self.data, self.cache / "extracted") for sample in samples]


class Teachers(NamedTuple):
    """The two teachers."""

    embedder: EmbeddingTeacher
    captioner: CaptioningTeacher


def teacher_records(recipe: Recipe) -> tuple[TeacherRecord, TeacherRecord]:
    """Return who the recipe's teachers are and under which licences they came, for a manifest.

    Raises:
        TeacherError: there is no such folder, or its card is malformed.
    """
    names = recipe.teachers
    embedder, captioner = embedder_card(names.embedder), captioner_card(names.captioner)
    return (
        TeacherRecord(id=embedder.id, licence=names.embedder_licence or embedder.licence, task="embedding"),
        TeacherRecord(id=captioner.id, licence=names.captioner_licence or captioner.licence, task="captioning"),
    )


def open_teachers(recipe: Recipe) -> Teachers:
    """Return the recipe's teachers.

    Raises:
        TeacherError: one cannot be opened.
    """
    names = recipe.teachers
    captioner = open_captioner(names.captioner, prompt=names.prompt or None, max_tokens=names.max_tokens)
    return Teachers(open_embedder(names.embedder), captioner)


def data_words(recipe: Recipe) -> str:
    """Return in a few words what the recipe's student is trained on, for a manifest."""
    data = recipe.data
    if isinstance(data, ScenesData):
        return f"scenes, seed {recipe.seed}, {data.train} pictures"
    return f"{data.name}, licence {data.licence}"


def prepare_data(recipe: Recipe, work: Workspace, report: Report) -> None:
    """Bring the data set of the recipe into `work.data`: scenes are rendered, any other source is curated.

    What an earlier call finished is kept.

    Raises:
        DataError: the folder holds another data set, or the source cannot be read.
        TeacherError: near-duplicates are looked for by embedding, and the embedding teacher cannot be opened.
        StorageFull: the disk is full.
    """
    data = recipe.data
    if not isinstance(data, ScenesData):
        curate(
            data,
            work.data,
            base=Path(),
            workers=recipe.threads,
            embed=_embed(recipe) if data.curate.near_cosine < 1.0 else None,
            progress=lambda done, total: report("curate", done, total, ""),
        )
        return
    write_dataset(
        work.data,
        split_sizes={"train": data.train, "val": data.val, "test": data.test},
        size_px={"train": data.train_px, "val": data.test_px, "test": data.test_px},
        seed=recipe.seed,
        workers=recipe.threads,
        progress=lambda done, total: report("render", done, total, ""),
    )


def reinforce_data(recipe: Recipe, work: Workspace, report: Report) -> list[Path]:
    """Ask the teachers about the training split and return the shards.

    Raises:
        TeacherError: a teacher cannot be opened.
        DataError: the data set is incomplete.
        StorageFull: the disk is full; finished shards are kept.
    """
    teachers, samples = open_teachers(recipe), read_samples(work.data, "train")
    with joined() as place:
        shards = reinforce(
            samples,
            data=work.data,
            place=place,
            embedder=teachers.embedder,
            captioner=teachers.captioner,
            embedder_pixels=_pixels(recipe, work, samples, teachers.embedder.preprocess, report),
            captioner_pixels=_pixels(recipe, work, samples, teachers.captioner.preprocess, report),
            folder=work.reinforced,
            settings=recipe.reinforce,
            seed=recipe.seed,
            workers=recipe.threads,
            progress=lambda done, total: report("reinforce", done, total, ""),
        )
        barrier()
    return shards


def train_student(recipe: Recipe, work: Workspace, shards: Sequence[Path], report: Report) -> Student:
    """Train the recipe's student from `shards`, take it through the recipe's phases, and return it in eval mode.

    Raises:
        DataError: data set or shards do not fit.
        TrainingError: the loss is not finite, or the folder belongs to another run.
        StorageFull: the disk is full; the last checkpoint is kept.
    """
    samples, reinforced = read_samples(work.data, "train"), read_reinforced(shards)
    tokenizer = _tokenizer(recipe, work, all_texts(samples, reinforced))
    config = recipe.student_config(tokenizer.vocab_size)
    weights = recipe.train.losses
    share = weights.sequence / (weights.caption + weights.sequence) if weights.sequence else 0.0
    data = TrainingSet(
        samples,
        _pixels(recipe, work, samples, preprocess_spec(config), report),
        reinforced,
        token_ids(samples, reinforced, tokenizer, cache=work.cache),
        teacher_caption_share=share,
        with_concepts=weights.concepts > 0,
        with_alternatives=weights.token > 0,
        seed=recipe.seed,
    )

    def progress(phase: str, at: Progress) -> None:
        report(phase, at.step, at.steps, f"loss {at.loss:.3f}, {at.images_per_s:.0f} images/s")

    validation = _validation(recipe, work, tokenizer, preprocess_spec(config), report)
    student = train(
        without_phases(recipe),
        data,
        tokenizer,
        teacher_dim=reinforced.dim,
        run=work.student,
        start=_start(recipe, config),
        validation=validation,
        progress=partial(progress, "train"),
    )
    return run_phases(recipe, student, Setting(data, tokenizer, reinforced.dim, work.student, validation, progress))


def _start(recipe: Recipe, config: StudentConfig) -> Student | None:
    """Return the student that training starts with, where the recipe says more than its sizes."""
    plan = recipe.student
    if not plan.backbone_weights and not plan.start:
        return None
    torch.manual_seed(recipe.seed)
    student = Student(config)
    if plan.start:
        inherit(student, load_student(Path(plan.start))[0])
    if plan.backbone_weights:
        load_backbone(student, Path(plan.backbone_weights))
    return student


def _validation(
    recipe: Recipe, work: Workspace, tokenizer: Tokenizer, spec: PreprocessSpec, report: Report
) -> Validation | None:
    """Return the validation split with the first caption of each picture, where the recipe looks at it."""
    every = recipe.train.validate_every
    if not every:
        return None
    samples = [sample for sample in read_samples(work.data, "val") if sample.captions]
    if not samples:
        raise RecipeError(
            "train.validate_every",
            expected="captioned pictures in the split val",
            found="none",
            remedy="Set data.val, name a val split under data.splits, or set train.validate_every to 0.",
        )
    ids = tokenizer.encode_batch([sample.captions[0] for sample in samples])
    return Validation(_pixels(recipe, work, samples, spec, report), ids, pad_id=tokenizer.pad_id, every=every)


class _Pictures(Sequence[PictureFile]):
    """The pictures of samples, looked up when they are asked for."""

    def __init__(self, samples: Sequence[Sample], folder: Path) -> None:
        self._samples, self._folder = samples, folder

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> PictureFile: ...

    @overload
    def __getitem__(self, index: slice) -> list[PictureFile]: ...

    def __getitem__(self, index: int | slice) -> PictureFile | list[PictureFile]:
        if isinstance(index, slice):
            return [sample.picture(self._folder) for sample in self._samples[index]]
        return self._samples[index].picture(self._folder)


def _embed(recipe: Recipe) -> Embed:
    """Return the embedding teacher as a function of pictures."""
    teacher = open_teachers(recipe).embedder

    def embed(pictures: Sequence[PictureFile]) -> NDArray[np.float32]:
        return teacher.embed_images(np.stack([preprocess(as_source(one), teacher.preprocess) for one in pictures]))

    return embed


def _pixels(
    recipe: Recipe, work: Workspace, samples: Sequence[Sample], spec: PreprocessSpec, report: Report
) -> PixelSource:
    pictures = _Pictures(samples, work.data)
    if not recipe.cache_pixels:
        return DecodedPixels(pictures, spec, workers=recipe.threads)
    return load_pixels(
        pictures,
        spec,
        cache=work.cache,
        workers=recipe.threads,
        progress=lambda done, total: report("decode", done, total, ""),
    )


def _tokenizer(recipe: Recipe, work: Workspace, texts: Iterable[str]) -> Tokenizer:
    """Return the student's tokenizer, a BPE trained on `texts` or the captioner's own, from the run's folder."""
    path, preset = work.student / "tokenizer.json", recipe.preset()
    if not path.exists():
        if recipe.student.start:
            load_student(Path(recipe.student.start))  # says what is wrong with it
            content = (Path(recipe.student.start) / "tokenizer.json").read_text(encoding="utf-8")
        elif recipe.student.tokenizer == "captioner":
            content = captioner_tokenizer(recipe.teachers.captioner)
        else:
            content = train_bpe(texts, vocab_size=preset.vocab_size).to_str()
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # several processes may be here at once: each writes its own, the same
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(content, encoding="utf-8")
            partial.replace(path)
    return Tokenizer.from_file(path, text_length=preset.text_length)
