"""The stage `student`: towers, captioner, and the towers again.

It leaves files in the output folder and skips what is there.
"""

import msgspec
import numpy as np
import torch

from benchmarks.flickr8k.blended import BlendTraining, blend, learn_pictures, learn_projections, learn_texts, widened
from benchmarks.flickr8k.captions import (
    CaptionTraining,
    StudentCaptioner,
    train_captions,
    written,
)
from benchmarks.flickr8k.critical import CriticalTraining, Look, train_critical
from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import MAP
from benchmarks.flickr8k.judged import judged_captions
from benchmarks.flickr8k.place import Place, save_weights, shortened
from benchmarks.flickr8k.sampled import embedded_captions, sampled_captions
from benchmarks.flickr8k.small import (
    IMAGE_QUERIES,
    SMALL,
    TEXT_LAYERS,
    Lesson,
    encoded,
    new_student,
    small_tokenizer,
    start_towers,
    teacher_directions,
)
from benchmarks.flickr8k.teaching import BEAMS, open_captions, open_pairs, open_space, vocabulary
from benchmarks.flickr8k.text_alone import AloneTraining, Sampled, deepened, mixed, train_texts
from benchmarks.flickr8k.towers import train_towers
from pocketlens.distill.recipe import LossWeights
from pocketlens.distill.students.student import Student, save_student

__all__ = [
    "ALONE",
    "BLENDED_PICTURES",
    "BLENDED_TEXTS",
    "CAPTIONS",
    "CRITICAL",
    "PROJECTIONS",
    "TOWERS",
    "open_lesson",
    "open_sampled",
    "train_blended",
    "train_student",
    "train_student_captioner",
    "train_student_towers",
    "train_text_tower_alone",
]

TOWERS = (StudentTraining(epochs=6), StudentTraining(epochs=4, learning_rate=7e-4, seed=1))
"""Two rounds: the rate rises again for the second (Loshchilov & Hutter 2017, SGDR)."""

CAPTIONS = CaptionTraining(epochs=3, captions=4, losses=LossWeights(token=1.0))
"""The student's captioner: three human captions of each picture, the teacher's, and what it finds likely in them."""

ALONE = (
    AloneTraining(epochs=3, stop=1, learning_rate=7e-4, ema=0.98, seed=2),
    AloneTraining(epochs=1, pictures=3000, learning_rate=4e-4, ema=0.98, seed=2),
)
"""The text tower alone, against pictures that stand still: one epoch of a schedule for three, then half an epoch."""

_ALONE_SHARE = 0.65
"""How far its weights then move from the old ones to the new: chosen on `dev` among 0.35, 0.65 and 1."""

_SAMPLED = 32_000

BLENDED_PICTURES = BlendTraining(
    steps=240, teacher=0.3, batch=384, learning_rate=1e-3, losses=LossWeights(affinity=1.0, feature=4.0)
)
"""The image heads, which then learn the blend of the student's pictures and the teacher's."""

BLENDED_TEXTS = BlendTraining(
    steps=560, teacher=0.4, batch=256, learning_rate=6e-4, seed=3, losses=LossWeights(affinity=1.0, feature=8.0)
)
"""The text tower, which learns the blend of the texts against those pictures."""

PROJECTIONS = BlendTraining(
    steps=80,
    batch=1200,
    learning_rate=2e-4,
    ema=0.95,
    seed=5,
    losses=LossWeights(contrastive=0.2, affinity=1.0, feature=2.0),
)
"""Both projections together, in the end."""

CRITICAL = CriticalTraining(pictures=4096)
"""It names fewer objects that are not there (docs/experiments/flickr8k.md); with no pictures it is left out."""


def train_student(place: Place) -> None:
    """Train the `small` student from the reinforced data set: towers, then captioner; judge its captions on `dev`."""
    if (place.out / "student.json").exists():
        return
    student = train_student_towers(place)
    curves = train_student_captioner(place, student)
    student = train_blended(place, train_text_tower_alone(place, student))
    save_student(place.out / "student", student)
    model, maps = StudentCaptioner(student), place.features("dev").grids[0][..., :MAP]
    figures = {
        f"captions, {beams} beams": judged_captions(
            written(model, vocabulary(place), maps, beams=beams), place.split("dev").captions
        )
        for beams in (1, BEAMS)
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
        model.start(open_space(place, lesson, SMALL.width))
        train_captions(model, lesson, shortened(place, CAPTIONS), after_epoch=lambda epoch, loss: losses.append(loss))
    looks: list[Look] = []
    if CRITICAL.pictures:
        with place.timed("student's captioner, self-critical"):
            training = shortened(place, CRITICAL)
            training = msgspec.structs.replace(training, pictures=min(training.pictures, len(lesson.human)))
            looks = train_critical(model, words, lesson, place.split("train").captions, training)
    return {"loss by epoch": losses, "reward by step": [look.reward for look in looks]}


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
                train_towers(student, tokenizer, lesson, shortened(place, training), directions=directions)
        save_weights(path, student.state_dict())
    student.load_state_dict(torch.load(path, weights_only=True))
    return student.eval()


def train_text_tower_alone(place: Place, student: Student) -> Student:
    """Return `student` with a deeper text tower that has learnt alone, from more captions; all else is as it was."""
    deep, path = deepened(student, TEXT_LAYERS), place.out / "text-tower.pt"
    if not path.exists():
        lesson, trained = open_lesson(place), deepened(student, TEXT_LAYERS)
        directions = teacher_directions(lesson, deep.config.embed_dim)
        sampled, words = open_sampled(place), vocabulary(place)
        with place.timed("student's text tower alone"):
            for training in ALONE[:1] if place.quick else ALONE:
                fitting = shortened(place, training)
                train_texts(trained, words, lesson, fitting, directions=directions, sampled=sampled)
        mixed(deep.text_encoder, trained.text_encoder, _ALONE_SHARE)
        save_weights(path, deep.text_encoder.state_dict())
    deep.text_encoder.load_state_dict(torch.load(path, weights_only=True))
    return deep.eval()


def train_blended(place: Place, student: Student) -> Student:
    """Return `student` with more queries whose towers have learnt its blend with the teacher; all else is as it was."""
    torch.manual_seed(0)
    wide = widened(student, IMAGE_QUERIES)
    heads, tower, last = (place.out / name for name in ("blended-heads.pt", "blended-text-tower.pt", "projections.pt"))
    if not (heads.exists() and tower.exists() and last.exists()):
        lesson, sampled = open_lesson(place), open_sampled(place)
        with place.timed("blend of student and teacher"):
            goal = blend(
                student,
                lesson,
                sampled,
                encoded(vocabulary(place), lesson.texts + sampled.texts),
                teacher_directions(lesson, student.config.embed_dim),
                pictures=BLENDED_PICTURES.teacher,
                texts=BLENDED_TEXTS.teacher,
            )
    if not heads.exists():
        with place.timed("student's pictures towards the blend"):
            training = _brief(place, BLENDED_PICTURES)
            learn_pictures(wide, place.features("train"), open_pairs(place), goal, training)
        values, trained = wide.image_encoder.state_dict(), ("attention.", "projection.")
        save_weights(heads, {name: value for name, value in values.items() if name.startswith(trained)})
    wide.image_encoder.load_state_dict(torch.load(heads, weights_only=True), strict=False)
    if not tower.exists():
        with place.timed("student's texts towards the blend"):
            learn_texts(wide, lesson, goal, _brief(place, BLENDED_TEXTS))
        save_weights(tower, wide.text_encoder.state_dict())
    wide.text_encoder.load_state_dict(torch.load(tower, weights_only=True))
    layers = {"image": wide.image_encoder.projection, "text": wide.text_encoder.projection}
    if not last.exists():
        with place.timed("student's projections"):
            learn_projections(wide, lesson, goal, _brief(place, PROJECTIONS))
        save_weights(last, {name: layer.state_dict() for name, layer in layers.items()})
    found = torch.load(last, weights_only=True)
    for name, layer in layers.items():
        layer.load_state_dict(found[name])
    return wide.eval()


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


def _brief(place: Place, training: BlendTraining) -> BlendTraining:
    """Return `training` as `_shortened` does; of ten steps where the run is a quick one."""
    fitting = shortened(place, training)
    return msgspec.structs.replace(fitting, steps=10) if place.quick else fitting
