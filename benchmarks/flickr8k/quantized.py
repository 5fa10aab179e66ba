"""The stage `quantized`: what int8 costs each tower on `dev`, calibrated after training (PTQ) or trained for it (QAT).

Every tower is trained in three ways, from the student of `train_student`:

- not at all, then calibrated as the stage `export` does;
- for some steps in float, then calibrated: what those steps do without any rounding;
- for the same steps with the rounding simulated, as `[qat]` of a recipe does. The ExecuTorch graph takes the trained
  ranges, the ONNX graph the trained weights alone.

What each student answers in float, as torch computes it, stands beside.

Nothing that lies in the output folder is repeated. Letters: `B` pictures or captions of a step, `N` pictures, `D`
embedding of the student, `T` of the teacher.
"""

import copy
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.flickr8k.ablations import dev_vectors
from benchmarks.flickr8k.descent import Descent, StudentTraining
from benchmarks.flickr8k.features import picture_view
from benchmarks.flickr8k.judged import judged_recall
from benchmarks.flickr8k.paired import hits, less
from benchmarks.flickr8k.place import Place
from benchmarks.flickr8k.small import Lesson, as_maps, encoded, teacher_directions
from benchmarks.flickr8k.student_stage import open_lesson
from benchmarks.flickr8k.teaching import vocabulary
from benchmarks.flickr8k.text_alone import embedded_pictures, embedded_texts
from pocketlens.core.bundle import Role
from pocketlens.distill import losses
from pocketlens.distill.compression.quantized_student import QuantizedStudent
from pocketlens.distill.students.student import Student, load_student
from pocketlens.export.graphs import student_graphs
from pocketlens.export.reference import Feed
from pocketlens.export.targets import open_target

__all__ = ["ARMS", "PRACTICE", "Taught", "judge_quantized", "practise"]

Arm = Literal["calibrated", "trained on in float, then calibrated", "trained for int8"]
ARMS: Final[tuple[Arm, ...]] = ("calibrated", "trained on in float, then calibrated", "trained for int8")

PRACTICE: Final[dict[Role, StudentTraining]] = {
    "image_encoder": StudentTraining(batch=16, epochs=50, learning_rate=5e-5, ema=0.9, views=2),
    "text_encoder": StudentTraining(batch=64, epochs=80, learning_rate=1e-4, ema=0.95),
}
"""How each tower is trained. Its `epochs` are steps: the time is that of 800 pictures."""

_CALIBRATED: Final = 32
_ROWS: Final = 50
_FIRST: Final = 8  # batches whose extremes the ranges start from
_FOLLOW: Final = 0.01
_MOVING: Final = 0.6
_CROP_SEED: Final = 7  # of `grid_features`
_EAGER: Final = "eager"
_ENGINES: Final = ("executorch", "onnx", _EAGER)
_ROLES: Final[tuple[Role, ...]] = ("image_encoder", "text_encoder")


class Taught:
    """What a tower learns from: the teacher's vectors, turned into the student's space.

    Args:
        place: data and results.
        student: as it is; its other tower stands still.
        lesson: what it was trained with.
    """

    def __init__(self, place: Place, student: Student, lesson: Lesson) -> None:
        self.student, self.lesson, self._pixels = student, lesson, place.split("train").pixels
        directions = teacher_directions(lesson, student.config.embed_dim)
        self.teacher_images = [_turned(view, directions) for view in lesson.teacher_images]
        self.teacher_texts = _turned(lesson.teacher_texts, directions)
        self.ids = torch.from_numpy(encoded(vocabulary(place), lesson.texts))

    @cached_property
    def pictures(self) -> Tensor:
        """The student's vectors `(N, D)` of the pictures as they are."""
        return embedded_pictures(self.student, self.lesson.maps[0])

    @cached_property
    def texts(self) -> Tensor:
        """The student's vectors `(5 N, D)` of the captions."""
        return embedded_texts(self.student.text_encoder, self.ids)

    def pixels(self, rows: NDArray[np.int64], view: int) -> Tensor:
        """Return `(B, H, W, 3)` uint8."""
        views = [picture_view(self._pixels[row], view, seed=(_CROP_SEED, int(row))) for row in rows]
        return torch.from_numpy(np.stack(views))

    @torch.no_grad()
    def visual_tokens(self, rows: NDArray[np.int64], view: int) -> Tensor:
        """Return the student's `(B, V, E)`, which its captioner knows."""
        maps = torch.from_numpy(self.lesson.maps[view, rows].astype(np.float32))
        tokens: Tensor = self.student.image_encoder.heads(as_maps(maps))[1]
        return tokens


def practise(taught: Taught, role: Role, training: StudentTraining, *, rounded: bool) -> Student:
    """Return the student with one tower trained for some steps, with its ranges if it was `rounded` meanwhile.

    The losses are those of `train_towers` against the other tower's vectors of one caption of each picture (of each
    picture), which stand still. Pictures learn to keep their visual tokens too, which the captioner reads.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    result = copy.deepcopy(taught.student)
    simulated = QuantizedStudent(copy.deepcopy(taught.student))
    step_loss = _image_loss if role == "image_encoder" else _text_loss
    descent = Descent(list(simulated.graphs()[role].graph.parameters()), training, steps=training.epochs)
    simulated.calibrate(True)
    with torch.no_grad():
        for step in range(_FIRST if rounded else 0):
            simulated.follow(1.0 / (step + 1))
            step_loss(taught, simulated, training, rng)
    simulated.calibrate(not rounded)
    simulated.follow(_FOLLOW if rounded else 0.0)
    for step in range(training.epochs):
        if rounded and step == round(_MOVING * training.epochs):
            simulated.follow(0.0)
            simulated.settle()
        descent.step(step_loss(taught, simulated, training, rng))
    descent.finish()
    simulated.write_back(result)
    result.ranges = {role: result.ranges[role]} if rounded else {}
    return result.eval()


def _image_loss(
    taught: Taught, simulated: QuantizedStudent, training: StudentTraining, rng: np.random.Generator
) -> Tensor:
    rows, view = rng.permutation(len(taught.lesson.captions))[: training.batch], int(rng.integers(training.views))
    turn = int(rng.integers(5))  # one caption of each picture
    moving, tokens = simulated.image_encoder(taught.pixels(rows, view))
    kept = taught.visual_tokens(rows, view)
    away: Tensor = (tokens - kept).square().mean() / kept.square().mean()
    teacher = taught.teacher_images[view][rows]
    return away + _loss(moving, taught.texts[turn::5], rows, teacher, taught.teacher_texts[turn::5], taught, training)


def _text_loss(
    taught: Taught, simulated: QuantizedStudent, training: StudentTraining, rng: np.random.Generator
) -> Tensor:
    chosen = rng.permutation(len(taught.ids))[: training.batch]
    moving = simulated.text_encoder(taught.ids[chosen])
    teacher = taught.teacher_texts[chosen]
    return _loss(moving, taught.pictures, chosen // 5, teacher, taught.teacher_images[0], taught, training)


def _loss(
    moving: Tensor,
    still: Tensor,
    rows: NDArray[np.int64],
    teacher: Tensor,
    teacher_still: Tensor,
    taught: Taught,
    training: StudentTraining,
) -> Tensor:
    """Return the terms for `moving (B, D)`, matched by `rows` of `still (N, D)`; `teacher` says what they should be."""
    scale, weights = taught.student.logit_scale.detach().exp(), training.losses
    contrastive = functional.cross_entropy(scale * moving @ still.T, torch.from_numpy(rows))
    affinity = losses.affinity(moving, still, scale, teacher, teacher_still, temperature=training.temperature)
    feature = losses.feature(moving, teacher)
    return weights.contrastive * contrastive + weights.affinity * affinity + weights.feature * feature


def judge_quantized(place: Place) -> None:
    """Train, lower and judge each tower in each way that is not there; write `quantized.json`."""
    written = place.out / "quantized.json"
    found: dict[str, Any] = msgspec.json.decode(written.read_bytes()) if written.exists() else {}
    student, tokenizer = load_student(place.out / "student")
    eager = dict(zip(_ROLES, dev_vectors(place, student, tokenizer), strict=True))
    if "eager" not in found:
        found["eager"] = {"dev": msgspec.to_builtins(judged_recall(*eager.values()))}
    folder = place.out / "quantized"
    folder.mkdir(exist_ok=True)

    @cache
    def taught() -> Taught:
        return Taught(place, student, open_lesson(place))

    for role in _ROLES:
        for arm in ARMS:
            names = {engine: f"{role}, {arm}, {engine}" for engine in _ENGINES}
            if all(name in found for name in names.values()):
                continue
            path = folder / f"{_slug(f'{role}, {arm}')}.pt"
            if arm != "calibrated" and not path.exists():
                _practise(path, taught(), role, arm, _fitting(place, PRACTICE[role]))
            trained, seconds = (student, 0.0) if arm == "calibrated" else _opened(path, student)
            for engine, name in names.items():
                if name not in found:
                    vectors, size = _lowered(place, folder, trained, role, arm, engine)
                    np.save(folder / f"{_slug(name)}.npy", vectors)
                    found[name] = {"seconds": seconds, "bytes": size} | _judged(folder, eager, role, engine, vectors)
                    place.write("quantized", found)
    for engine in _ENGINES:
        for arm in ARMS:
            both = {role: np.load(folder / f"{_slug(f'{role}, {arm}, {engine}')}.npy") for role in _ROLES}
            found[f"both, {arm}, {engine}"] = _figures(folder, eager, both, engine)
    place.write("quantized", found)


def _judged(
    folder: Path, eager: dict[Role, NDArray[np.float32]], role: Role, engine: str, vectors: NDArray[np.float32]
) -> dict[str, Any]:
    """Return what became of one tower, its twin as it was: figures, cosine and length."""
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = (vectors * eager[role]).sum(axis=1) / lengths
    return _figures(folder, eager, eager | {role: vectors}, engine, role) | {
        "cosine": [float(cosines.mean()), float(cosines.min())],
        "length": [float(lengths.mean()), float(lengths.std())],
    }


def _figures(
    folder: Path,
    eager: dict[Role, NDArray[np.float32]],
    own: dict[Role, NDArray[np.float32]],
    engine: str,
    role: Role | None = None,
) -> dict[str, Any]:
    """Return the figures of `own` vectors, less those of the eager student and of the calibrated one."""
    base = dict(eager)
    for one in _ROLES if role is None else (role,):
        path = folder / f"{_slug(f'{one}, {ARMS[0]}, {engine}')}.npy"
        base[one] = np.load(path) if path.exists() else own[one]
    mine = hits(*own.values())
    return {
        "dev": msgspec.to_builtins(judged_recall(*own.values())),
        "less eager": msgspec.to_builtins(less(mine, hits(*eager.values()))),
        "less calibrated": msgspec.to_builtins(less(mine, hits(*base.values()))),
    }


def _practise(path: Path, taught: Taught, role: Role, arm: Arm, training: StudentTraining) -> None:
    began = time.process_time()
    student = practise(taught, role, training, rounded=arm == "trained for int8")
    seconds = time.process_time() - began
    partial = path.with_suffix(".partial")
    torch.save({"state": student.state_dict(), "ranges": student.ranges, "seconds": seconds}, partial)
    partial.replace(path)


def _opened(path: Path, student: Student) -> tuple[Student, float]:
    """Return the student that `_practise` wrote, and the processor seconds that its training took."""
    kept = torch.load(path, weights_only=True)
    trained = copy.deepcopy(student)
    trained.load_state_dict(kept["state"])
    trained.ranges = kept["ranges"]
    return trained.eval(), kept["seconds"]


def _lowered(
    place: Place, folder: Path, student: Student, role: Role, arm: Arm, engine: str
) -> tuple[NDArray[np.float32], int]:
    """Return what the int8 graph of a tower makes of `dev`, and its bytes; with `_EAGER` what it is in float, and 0."""
    if engine == _EAGER:
        return _eager(student, role, _inputs(place, role)), 0
    graph, target = student_graphs(student)[role], open_target(engine)
    path = folder / f"{_slug(f'{role}, {arm}')}{target.suffix}"
    target.export(graph, {"int8": path}, _feeds(place, role))
    run: Callable[[Feed], NDArray[np.float32]] = _executorch(path) if engine == "executorch" else _onnx(path)
    name = graph.inputs[0].name
    return np.concatenate([run({name: row[None]}) for row in _inputs(place, role)]), path.stat().st_size


@torch.inference_mode()
def _eager(student: Student, role: Role, inputs: NDArray[Any]) -> NDArray[np.float32]:
    tower = student.get_submodule(role)
    answers = [tower(torch.from_numpy(inputs[at : at + _ROWS])) for at in range(0, len(inputs), _ROWS)]
    return torch.cat([one[0] if isinstance(one, tuple) else one for one in answers]).numpy()


def _feeds(place: Place, role: Role) -> list[Feed]:
    """Return the training pictures or captions that the stage `export` calibrates with."""
    rng, train = np.random.default_rng(0), place.split("train")
    pictures, captions = (rng.permutation(len(train.captions))[:_CALIBRATED] for _ in _ROLES)
    if role == "image_encoder":
        return [{"pixels": train.pixels[row][None]} for row in pictures]
    ids = encoded(vocabulary(place), [train.captions[row][0] for row in captions])
    return [{"ids": row[None]} for row in ids]


def _inputs(place: Place, role: Role) -> NDArray[Any]:
    dev = place.split("dev")
    if role == "image_encoder":
        return dev.pixels
    return encoded(vocabulary(place), [text for texts in dev.captions for text in texts])


def _onnx(path: Path) -> Callable[[Feed], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(feed: Feed) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = session.run(["embedding"], feed)[0]
        return embedding

    return run


def _executorch(path: Path) -> Callable[[Feed], NDArray[np.float32]]:
    from executorch.kernels import quantized  # noqa: F401 # registers the operators that round
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))
    kept = (program, program.load_method("forward"))  # the method alone does not keep its program alive

    def run(feed: Feed) -> NDArray[np.float32]:
        outputs = kept[1].execute([torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()])
        return np.array(outputs[0].numpy())  # the next call overwrites it

    return run


def _fitting(place: Place, training: StudentTraining) -> StudentTraining:
    """Return `training` with no more views and pictures than there are."""
    views, batch = min(training.views, place.training_views), min(training.batch, len(place.split("train").captions))
    steps = 2 if place.quick else training.epochs
    return msgspec.structs.replace(training, views=views, batch=batch, epochs=steps)


def _turned(vectors: NDArray[np.float16], directions: Tensor) -> Tensor:
    turned: Tensor = functional.normalize(torch.from_numpy(vectors.astype(np.float32)) @ directions, dim=1)
    return turned


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
