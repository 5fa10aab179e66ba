"""The stages up to the trained student. Each leaves files in the output folder and skips what is there."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.flickr8k.captioner import TEACHING, WIDTH, GridCaptioner, write_captions
from benchmarks.flickr8k.captions import (
    CaptionLesson,
    CaptionTraining,
    StudentCaptioner,
    found_captions,
    train_captions,
    written,
)
from benchmarks.flickr8k.critical import CriticalTraining, Look, train_critical
from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import CHANNELS, MAP, Split, grid_features, read_split, token_features
from benchmarks.flickr8k.heads import Features, HeadRecipe, Pair, embed_grids, embed_tokens, train_pair
from benchmarks.flickr8k.nearest import nearest_captions
from benchmarks.flickr8k.objects import hallucination
from benchmarks.flickr8k.sampled import embedded_captions, sampled_captions
from benchmarks.flickr8k.small import (
    SMALL,
    TEXT_LAYERS,
    Lesson,
    encoded,
    new_student,
    small_tokenizer,
    start_towers,
    teacher_directions,
)
from benchmarks.flickr8k.text_alone import Sampled, deepened, mixed, train_texts
from benchmarks.flickr8k.towers import train_towers
from benchmarks.flickr8k.word_space import WordSpace, word_space
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, recall_at_k
from pocketlens.distill.students.student import Student, save_student

__all__ = [
    "HEADS",
    "TOWERS",
    "Place",
    "Taught",
    "borrowed_captions",
    "embed",
    "judged_captions",
    "judged_recall",
    "open_captions",
    "open_lesson",
    "open_pairs",
    "open_sampled",
    "open_teacher",
    "reinforce",
    "teach",
    "train_student",
    "train_text_tower_alone",
    "vocabulary",
]

HEADS = (HeadRecipe(), HeadRecipe(queries=6, dropout=0.35, seed=1), HeadRecipe(queries=6, dropout=0.3, seed=2))
"""The ensemble. Its members differ in seed, queries and dropout."""

TOWERS = (StudentTraining(epochs=6), StudentTraining(epochs=4, learning_rate=7e-4, seed=1))
"""Two rounds: the rate rises again for the second (Loshchilov & Hutter 2017, SGDR)."""

CAPTIONS = CaptionTraining(epochs=2)
"""The student's captioner: the teacher's caption and four human ones of each picture."""

ALONE = StudentTraining(epochs=2, learning_rate=7e-4, ema=0.98, seed=2)
"""The text tower alone, against pictures that stand still."""

_ALONE_SHARE = 0.65
"""How far its weights then move from the old ones to the new: chosen on `dev` among 0.35, 0.65 and 1."""

_SAMPLED = 32_000

CRITICAL = CriticalTraining(pictures=0)
"""Left out: 800 pictures did not make the captions better (docs/experiments/flickr8k.md)."""

_BEAMS = 3
_NEIGHBOURS = (1, 30)
_Training = TypeVar("_Training", bound=StudentTraining)
_TRAINING_VIEWS = 4
_CAPTION_VIEWS = 2  # a crop may have lost what its captions speak of


class Place:
    """Where data and results lie, and what was read so far."""

    def __init__(self, data: Path, out: Path, *, quick: bool = False) -> None:
        self.data, self.out, self.quick = data, out, quick
        out.mkdir(parents=True, exist_ok=True)
        self._splits: dict[str, Split] = {}
        self._features: dict[tuple[str, int], Features] = {}

    @property
    def weights(self) -> Path:
        """The ImageNet backbone."""
        return self.data / "weights" / "mobilenetv2_100_same_in1k_fp16.safetensors"

    @cached_property
    def training_views(self) -> int:
        """Views of a training picture: itself, mirrored, and crops."""
        return 2 if self.quick else _TRAINING_VIEWS

    def split(self, name: str) -> Split:
        """Return a split, read once."""
        if name not in self._splits:
            self._splits[name] = read_split(self.data, name)
        return self._splits[name]

    def features(self, name: str) -> Features:
        """Return the frozen towers' features of a split: training views, or the picture and its mirror image."""
        views = self.training_views if name == "train" else 2
        key = (name, views)
        if key not in self._features:
            split, cache = self.split(name), self.out / "features"
            grids, pooled = grid_features(split, self.weights, cache, views=range(views), progress=_progress)
            tokens, lengths = token_features([text for texts in split.captions for text in texts], cache)
            self._features[key] = Features(grids, pooled, tokens, lengths)
        return self._features[key]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note the processor seconds of a piece of work, for `seconds`."""
        began = time.process_time()
        yield
        self.write("seconds", self.seconds() | {name: round(time.process_time() - began, 1)})

    def seconds(self) -> dict[str, float]:
        """Return the processor seconds noted so far, of earlier runs too."""
        path = self.out / "seconds.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float]) if path.exists() else {}

    def write(self, name: str, found: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write a stage's result."""
        path = self.out / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
        partial.replace(path)


class Taught(NamedTuple):
    """The teachers, and the vocabulary in which the captioner writes: the student's."""

    pairs: list[Pair]
    captioner: GridCaptioner
    words: Tokenizer


def teach(place: Place) -> None:
    """Train the ensemble of heads and the captioner; judge both on `dev`."""
    if (place.out / "teacher.json").exists():
        return
    train_heads(place)
    embed(place)
    train_teacher_captioner(place)
    taught, dev, references = open_teacher(place), place.features("dev"), place.split("dev").captions
    images, texts = embed_grids(taught.pairs, dev), embed_tokens(taught.pairs, dev)
    figures = {
        f"captions, {beams} beams": judged_captions(
            [text for text, _ in write_captions(taught.captioner, taught.words, dev.grids[0], beams=beams)], references
        )
        for beams in (1, _BEAMS)
    }
    figures |= {
        f"caption of {count} nearest pictures": judged_captions(borrowed_captions(place, images[0], count), references)
        for count in _NEIGHBOURS
    }
    figures["one view"] = judged_recall(images[0], texts)
    figures["mirrored too"] = judged_recall(_unit(images.mean(axis=0)), texts)
    place.write("teacher", {"seconds": place.seconds(), "dev": figures})


def train_heads(place: Place) -> None:
    """Train the members of the ensemble that are not there yet."""
    for number, recipe in enumerate(HEADS[:1] if place.quick else HEADS):
        path = place.out / f"head-{number}.pt"
        if not path.exists():
            features = place.features("train")
            with place.timed(f"head {number}"):
                batch = min(recipe.batch, len(features.pooled[0]))
                epochs = 1 if place.quick else recipe.epochs
                shortened = msgspec.structs.replace(recipe, epochs=epochs, batch=batch)
                _save(path, train_pair(features, shortened).state_dict())


def train_teacher_captioner(place: Place) -> None:
    """Train the captioning teacher unless it is there."""
    path = place.out / "captioner.pt"
    if path.exists():
        return
    lesson = open_captions(place)
    with place.timed("captioner"):
        torch.manual_seed(0)
        model = GridCaptioner(channels=CHANNELS, vocabulary=vocabulary(place).vocab_size)
        model.start(_space(place, lesson, WIDTH))
        train_captions(model, lesson, _shortened(place, TEACHING))
    _save(path, model.state_dict())


def vocabulary(place: Place) -> Tokenizer:
    """Return the student's, which the captioning teacher shares."""
    return small_tokenizer(place.out / "student" / "tokenizer.json", place.split("train").captions)


def open_captions(place: Place) -> CaptionLesson:
    """Return what a captioner learns from, all channels of the maps; with the teacher's captions where they are."""
    captions, path = place.split("train").captions, place.out / "teacher-captions.npy"
    return CaptionLesson(
        maps=place.features("train").grids[:_CAPTION_VIEWS],
        human=encoded(vocabulary(place), [text for texts in captions for text in texts]).reshape(len(captions), 5, -1),
        teacher=np.load(path) if path.exists() else None,
    )


def borrowed_captions(place: Place, images: NDArray[np.float32], neighbours: int) -> list[str]:
    """Return the captions of the training pictures nearest to the teacher's `images (N, T)`."""
    texts = [text for texts in place.split("train").captions for text in texts]
    with np.load(place.out / "reinforced.npz") as stored:
        pictures, vectors = (stored[name].astype(np.float32) for name in ("images", "texts"))
    return nearest_captions(images, pictures[0], vectors, texts, neighbours=neighbours)


def open_pairs(place: Place) -> list[Pair]:
    """Return the heads that `train_heads` trained."""
    features, pairs = place.features("dev"), []
    for number, recipe in enumerate(HEADS[:1] if place.quick else HEADS):
        pair = Pair(features, recipe)
        pair.load_state_dict(torch.load(place.out / f"head-{number}.pt", weights_only=True))
        pairs.append(pair.eval())
    return pairs


def open_teacher(place: Place) -> Taught:
    """Return the teachers that `teach` trained."""
    words = vocabulary(place)
    model = GridCaptioner(channels=CHANNELS, vocabulary=words.vocab_size)
    model.load_state_dict(torch.load(place.out / "captioner.pt", weights_only=True))
    return Taught(open_pairs(place), model.eval(), words)


def embed(place: Place) -> None:
    """Write the embedding teacher's vectors of the training pictures, in all views, and of their captions."""
    path = place.out / "reinforced.npz"
    if path.exists():
        return
    pairs, features = open_pairs(place), place.features("train")
    partial = path.with_suffix(".partial.npz")
    with place.timed("teacher's embeddings"):
        images, texts = embed_grids(pairs, features), embed_tokens(pairs, features)
    np.savez(partial, images=images.astype(np.float16), texts=texts.astype(np.float16))
    partial.replace(path)


def reinforce(place: Place) -> None:
    """Write what the teachers say of the training data: embeddings, and a caption of each picture."""
    embed(place)
    path = place.out / "teacher-captions.npy"
    if path.exists():
        return
    taught, maps = open_teacher(place), place.features("train").grids[0]
    with place.timed("teacher's captions"):
        ids, _ = found_captions(taught.captioner, taught.words, maps, beams=_BEAMS)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, ids)
    partial.replace(path)


def train_student(place: Place) -> None:
    """Train the `small` student from the reinforced data set: towers, then captioner; judge its captions on `dev`."""
    if (place.out / "student.json").exists():
        return
    student = train_student_towers(place)
    curves = train_student_captioner(place, student)
    student = train_text_tower_alone(place, student)
    save_student(place.out / "student", student)
    model, maps = StudentCaptioner(student), place.features("dev").grids[0][..., :MAP]
    figures = {
        f"captions, {beams} beams": judged_captions(
            written(model, vocabulary(place), maps, beams=beams), place.split("dev").captions
        )
        for beams in (1, _BEAMS)
    }
    found = {"seconds": place.seconds(), "parameters": student.parameter_count(), "curves": curves, "dev": figures}
    place.write("student", found)


def train_student_captioner(place: Place, student: Student) -> dict[str, list[float]]:
    """Train the captioner of `student` in place: by cross-entropy, for CIDEr too if asked; return loss and reward."""
    every, words = open_captions(place), vocabulary(place)
    lesson, model = every._replace(maps=every.maps[..., :MAP]), StudentCaptioner(student)
    losses: list[float] = []
    with place.timed("student's captioner"):
        torch.manual_seed(0)
        model.start(_space(place, lesson, SMALL.width))
        train_captions(model, lesson, _shortened(place, CAPTIONS), after_epoch=lambda epoch, loss: losses.append(loss))
    looks: list[Look] = []
    if CRITICAL.pictures:
        with place.timed("student's captioner, self-critical"):
            training = _shortened(place, CRITICAL)
            training = msgspec.structs.replace(training, pictures=min(training.pictures, len(lesson.human)))
            looks = train_critical(model, words, lesson, place.split("train").captions, training)
    return {"loss by epoch": losses, "reward by step": [look.reward for look in looks]}


def _space(place: Place, lesson: CaptionLesson, width: int) -> WordSpace:
    with np.load(place.out / "reinforced.npz") as stored:
        return word_space(
            lesson.maps[0],
            lesson.human.reshape(-1, lesson.human.shape[2]),
            stored["images"][0],
            stored["texts"],
            vocabulary=vocabulary(place).vocab_size,
            width=width,
        )


def train_student_towers(place: Place) -> Student:
    """Return the student with trained towers, trained unless they are there."""
    lesson, vocabulary = open_lesson(place), place.out / "student" / "tokenizer.json"
    tokenizer = small_tokenizer(vocabulary, lesson.captions)
    student = new_student(tokenizer, place.weights)
    path = place.out / "towers.pt"
    if not path.exists():
        with place.timed("student's towers"):
            directions = start_towers(student, tokenizer, vocabulary, lesson, "closed form")
            for training in TOWERS[:1] if place.quick else TOWERS:
                train_towers(student, tokenizer, lesson, _shortened(place, training), directions=directions)
        _save(path, student.state_dict())
    student.load_state_dict(torch.load(path, weights_only=True))
    return student.eval()


def train_text_tower_alone(place: Place, student: Student) -> Student:
    """Return `student` with a deeper text tower that has learnt alone, from more captions; all else is as it was."""
    deep, path = deepened(student, TEXT_LAYERS), place.out / "text-tower.pt"
    if not path.exists():
        lesson, trained = open_lesson(place), deepened(student, TEXT_LAYERS)
        directions = teacher_directions(lesson, deep.config.embed_dim)
        sampled, training = open_sampled(place), _shortened(place, ALONE)
        with place.timed("student's text tower alone"):
            train_texts(trained, vocabulary(place), lesson, training, directions=directions, sampled=sampled)
        mixed(deep.text_encoder, trained.text_encoder, _ALONE_SHARE)
        _save(path, deep.text_encoder.state_dict())
    deep.text_encoder.load_state_dict(torch.load(path, weights_only=True))
    return deep.eval()


def open_sampled(place: Place) -> Sampled:
    """Return sampled captions with the teacher's vectors, made and embedded unless they are there."""
    path = place.out / "sampled.npy"
    count = 200 if place.quick else _SAMPLED
    texts = sampled_captions(place.split("train").captions, count, seed=0)
    if not path.exists():
        with place.timed("teacher's embeddings of sampled captions"):
            vectors = embedded_captions(open_pairs(place), texts, place.features("dev"))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
    return Sampled(texts, np.load(path))


def open_lesson(place: Place) -> Lesson:
    """Return what the student learns from."""
    with np.load(place.out / "reinforced.npz") as stored:
        return Lesson(
            maps=place.features("train").grids[..., :MAP],
            captions=place.split("train").captions,
            teacher_images=stored["images"],
            teacher_texts=stored["texts"],
        )


def judged_recall(images: NDArray[np.float32], texts: NDArray[np.float32]) -> dict[str, Figure]:
    """Return recall@k both ways of `images (N, D)`, `texts (5 N, D)`."""
    owners = np.repeat(np.arange(len(images)), 5)
    return recall_at_k(images, texts, owners, bootstrap=Bootstrap(len(images), seed=0))


def judged_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Figure]:
    """Return CIDEr, BLEU, length and hallucination of `captions`."""
    bootstrap = Bootstrap(len(captions), seed=0)
    return caption_figures(captions, references, bootstrap=bootstrap) | hallucination(
        captions, references, bootstrap=bootstrap
    )


def _shortened(place: Place, training: _Training) -> _Training:
    """Return `training` with no more views and pictures than there are; of one epoch where the run is a quick one."""
    views, batch = min(training.views, place.training_views), min(training.batch, len(place.split("train").captions))
    return msgspec.structs.replace(training, epochs=1 if place.quick else training.epochs, views=views, batch=batch)


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return out


def _progress(done: int, total: int) -> None:
    if done % 1000 == 0 or done == total:
        print(f"features {done}/{total}", file=sys.stderr, flush=True)
