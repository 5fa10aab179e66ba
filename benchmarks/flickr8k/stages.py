"""The stages up to the trained student. Each leaves files in the output folder and skips what is there."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.flickr8k.captioner import CaptionerRecipe, GridCaptioner, Words, train_captioner, write_captions
from benchmarks.flickr8k.captions import train_captions
from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import MAP, Split, grid_features, read_split, token_features
from benchmarks.flickr8k.heads import Features, HeadRecipe, Pair, embed_grids, embed_tokens, train_pair
from benchmarks.flickr8k.objects import hallucination
from benchmarks.flickr8k.small import SMALL, Lesson, new_student, small_tokenizer, start_towers
from benchmarks.flickr8k.towers import train_towers
from benchmarks.flickr8k.words import inherited_vectors
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, recall_at_k
from pocketlens.distill.students.student import Student, save_student

__all__ = [
    "HEADS",
    "TOWERS",
    "Place",
    "Taught",
    "judged_captions",
    "judged_recall",
    "open_lesson",
    "open_pairs",
    "open_teacher",
    "reinforce",
    "teach",
    "train_student",
]

HEADS = (HeadRecipe(), HeadRecipe(queries=6, dropout=0.35, seed=1), HeadRecipe(queries=6, dropout=0.3, seed=2))
"""The ensemble. Its members differ in seed, queries and dropout."""

TOWERS = (StudentTraining(epochs=6), StudentTraining(epochs=4, learning_rate=7e-4, seed=1))
"""Two rounds: the rate rises again for the second (Loshchilov & Hutter 2017, SGDR)."""

CAPTIONS = StudentTraining(batch=32, epochs=3, learning_rate=1.5e-3, ema=0.99, tokens=22, views=2)
_BEAMS = 3
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
    """The teachers."""

    pairs: list[Pair]
    captioner: GridCaptioner
    words: Words


def teach(place: Place) -> None:
    """Train the ensemble of heads and the captioner; judge both on `dev`."""
    if (place.out / "teacher.json").exists():
        return
    train_heads(place)
    train_teacher_captioner(place)
    taught, dev, references = open_teacher(place), place.features("dev"), place.split("dev").captions
    images, texts = embed_grids(taught.pairs, dev), embed_tokens(taught.pairs, dev)
    figures = {
        f"captions, {beams} beams": judged_captions(
            [text for text, _ in write_captions(taught.captioner, taught.words, dev.grids[0], beams=beams)], references
        )
        for beams in (1, _BEAMS)
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
                shortened = msgspec.structs.replace(recipe, epochs=1) if place.quick else recipe
                _save(path, train_pair(features, shortened).state_dict())


def train_teacher_captioner(place: Place) -> None:
    """Train the captioning teacher unless it is there."""
    path = place.out / "captioner.pt"
    if not path.exists():
        grids = place.features("train").grids[:_CAPTION_VIEWS]
        with place.timed("captioner"):
            _save(path, train_captioner(grids, place.split("train").captions, _captioner_recipe(place))[0].state_dict())


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
    sizes = _captioner_recipe(place)
    words = Words(place.split("train").captions, sizes)
    places, channels = place.features("dev").grids.shape[2:]
    model = GridCaptioner(sizes, places=places, channels=channels, words=len(words.entries))
    model.load_state_dict(torch.load(place.out / "captioner.pt", weights_only=True))
    return Taught(open_pairs(place), model.eval(), words)


def reinforce(place: Place) -> None:
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


def train_student(place: Place) -> None:
    """Train the `small` student from the reinforced data set: towers, then captioner."""
    if (place.out / "student.json").exists():
        return
    student = train_student_towers(place)
    lesson, vocabulary = open_lesson(place), place.out / "student" / "tokenizer.json"
    words = inherited_vectors(vocabulary, width=SMALL.width)
    curves: list[float] = []
    with place.timed("student's captioner"):
        train_captions(
            student,
            small_tokenizer(vocabulary, lesson.captions),
            lesson,
            _shortened(place, CAPTIONS),
            words=words,
            after_epoch=lambda epoch, loss: curves.append(loss),
        )
    save_student(vocabulary.parent, student)
    found = {"seconds": place.seconds(), "parameters": student.parameter_count(), "caption loss by epoch": curves}
    place.write("student", found)


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


def _captioner_recipe(place: Place) -> CaptionerRecipe:
    return CaptionerRecipe(epochs=1) if place.quick else CaptionerRecipe()


def _shortened(place: Place, training: StudentTraining) -> StudentTraining:
    views = min(training.views, place.training_views)
    return msgspec.structs.replace(training, epochs=1 if place.quick else training.epochs, views=views)


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
