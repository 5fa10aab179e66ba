"""The text tower alone: it learns against the vectors of all training pictures, which stand still.

A step then costs the text tower alone and sees 6,000 pictures instead of a batch, and captions that belong to no
picture can take part: what the teacher says about them is known.

Letters: `B` captions of a step, `N` pictures, `D` embedding of the student, `T` of the teacher.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.flickr8k.descent import Descent, StudentTraining, dropping
from benchmarks.flickr8k.small import Lesson, as_maps, encoded
from benchmarks.flickr8k.towers import dropped_words
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill import losses
from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.student import Student
from pocketlens.distill.students.text_encoder import TextEncoder

__all__ = [
    "NOBODY",
    "AloneTraining",
    "Sampled",
    "batches",
    "deepened",
    "embedded_pictures",
    "embedded_texts",
    "mixed",
    "train_texts",
    "turned",
]

_PAD, _STEPS_SORTED, _ROWS = 0, 6, 500
NOBODY: Final = -1
"""Owner of a caption that belongs to no picture."""


class AloneTraining(StudentTraining, frozen=True, kw_only=True):
    """How the text tower learns alone.

    Attributes:
        stop: after so many epochs of the schedule for `epochs`; 0 for all of them.
        pictures: the captions of the first so many pictures are learnt from; 0 for all. All pictures are compared with.
    """

    stop: int = 0
    pictures: int = 0


class Sampled(NamedTuple):
    """Captions of no picture, and `(M, T)` of unit norm, what the teacher makes of them."""

    texts: list[str]
    teacher: NDArray[np.float16]


class _Rows(NamedTuple):
    """Vectors of the teacher `(M, D)` in the student's space, and the picture that each belongs to, or `NOBODY`."""

    teacher: Tensor
    owners: NDArray[np.int64]


def deepened(student: Student, layers: int) -> Student:
    """Return a student with a text tower of `layers` blocks that answers as `student` does.

    The blocks that are new add nothing yet.
    """
    deep = Student(msgspec.structs.replace(student.config, text_layers=layers))
    missing = deep.load_state_dict(student.state_dict(), strict=False).missing_keys
    if any(not name.startswith("text_encoder.blocks.") for name in missing):
        raise ValueError(f"expected weights of all but text blocks, found {missing} missing")
    with torch.no_grad():
        for block in cast("list[Block]", list(deep.text_encoder.blocks))[student.config.text_layers :]:
            for layer in (block.attention.output, cast("nn.Linear", block.feed[2])):
                layer.weight.zero_()
                layer.bias.zero_()
    return deep.eval()


def train_texts(
    student: Student,
    tokenizer: Tokenizer,
    lesson: Lesson,
    training: AloneTraining,
    *,
    directions: Tensor,
    sampled: Sampled | None = None,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train the text tower in place against the student's pictures; return the loss of each step.

    Args:
        student: nothing but its text tower changes.
        tokenizer: the student's.
        lesson: what is learnt from.
        training: how.
        directions: `(T, D)`, the student's space in the teacher's.
        sampled: more captions; half of each batch is drawn from them.
        after_epoch: called with the epoch's number and loss while the tower has its mean weights, in eval mode.
    """
    torch.manual_seed(training.seed)
    rng, text = np.random.default_rng(training.seed), student.text_encoder
    taken = 5 * training.pictures or len(lesson.texts)
    ids, teacher = encoded(tokenizer, lesson.texts[:taken]), lesson.teacher_texts[:taken]
    owners = np.arange(len(ids)) // 5
    if sampled is not None:
        ids = np.concatenate([ids, encoded(tokenizer, sampled.texts)])
        teacher = np.concatenate([teacher, sampled.teacher])
        owners = np.concatenate([owners, np.full(len(sampled.texts), NOBODY)])
    rows = _Rows(turned(teacher, directions), owners)
    pictures = [embedded_pictures(student, view) for view in lesson.maps[: training.views]]
    taught = [turned(view, directions) for view in lesson.teacher_images[: training.views]]
    each = taken // (training.batch // (1 if sampled is None else 2))
    descent = Descent(list(text.parameters()), training, steps=training.epochs * each)
    steps = (training.stop or training.epochs) * each
    dropout, curve = nn.Dropout(training.dropout), []
    scale = student.logit_scale.detach().exp()
    with dropping(cast("list[Block]", list(text.blocks)), dropout):
        text.train()
        for step, chosen in enumerate(batches(ids, owners, training, rng, steps=steps), 1):
            view = int(rng.integers(training.views))
            moving = text(dropped_words(ids[chosen], training, rng))
            curve.append(descent.step(_loss(moving, pictures[view], rows, chosen, taught[view], scale, training)))
            if step % each == 0:
                text.eval()
                with descent.averaged():
                    after_epoch(step // each, float(np.mean(curve[-each:])))
                text.train()
    descent.finish()
    text.eval()
    return curve


@torch.no_grad()
def mixed(start: TextEncoder, trained: TextEncoder, share: float) -> None:
    """Move the weights of `start` by `share` of the way to those of `trained`.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models": between what a model was and what further training
    made of it there is often something better than both.
    """
    for own, other in zip(start.parameters(), trained.parameters(), strict=True):
        own.lerp_(other, share)


@torch.inference_mode()
def _embedded(embed: Callable[[Tensor], Tensor], parts: Iterator[Tensor]) -> Tensor:
    return torch.cat([embed(part) for part in parts])


def embedded_pictures(student: Student, maps: NDArray[np.float16]) -> Tensor:
    """Return `(N, D)` of cached maps `(N, 49, C)`."""
    parts = (torch.from_numpy(maps[at : at + _ROWS].astype(np.float32)) for at in range(0, len(maps), _ROWS))
    return _embedded(lambda part: student.image_encoder.heads(as_maps(part))[0], parts).clone()


def embedded_texts(text: TextEncoder, ids: Tensor) -> Tensor:
    """Return `(M, D)` of `ids (M, L)`, computed in the order of their lengths: padding costs time."""
    lengths = (ids != _PAD).sum(dim=1)
    order = lengths.argsort()
    parts = (ids[rows][:, : int(lengths[rows].max())] for rows in order.split(_ROWS))
    vectors = _embedded(text, parts)
    out = torch.empty_like(vectors)
    out[order] = vectors
    return out.clone()


def turned(vectors: NDArray[np.float16], directions: Tensor) -> Tensor:
    """Return the teacher's `vectors (M, T)` in the student's space, of unit norm."""
    turned: Tensor = functional.normalize(torch.from_numpy(vectors.astype(np.float32)) @ directions, dim=1)
    return turned


def _loss(
    moving: Tensor,
    still: Tensor,
    rows: _Rows,
    chosen: NDArray[np.int64],
    taught: Tensor,
    scale: Tensor,
    training: StudentTraining,
) -> Tensor:
    """Return the sum of the terms for `moving (B, D)`, row `chosen` of `rows`, against `still (N, D)`."""
    weights, teacher = training.losses, rows.teacher[chosen]
    owners = torch.from_numpy(rows.owners[chosen])
    terms = []
    if weights.contrastive:
        owned = owners != NOBODY
        terms.append(weights.contrastive * _contrastive(moving[owned], still, owners[owned], scale))
    if weights.affinity:
        terms.append(
            weights.affinity * losses.affinity(moving, still, scale, teacher, taught, temperature=training.temperature)
        )
    if weights.feature:
        terms.append(weights.feature * losses.feature(moving, teacher))
    return torch.stack(terms).sum()


def _contrastive(moving: Tensor, still: Tensor, owners: Tensor, scale: Tensor) -> Tensor:
    """Return the InfoNCE of `moving (B, D)` among all of `still (N, D)`, and of their owners among `moving`."""
    logits = scale * moving @ still.T
    among = logits[:, owners].T
    twins = (owners[:, None] == owners) & ~torch.eye(len(owners), dtype=torch.bool)  # two captions of one picture
    backward = functional.cross_entropy(among.masked_fill(twins, -torch.inf), torch.arange(len(owners)))
    return (functional.cross_entropy(logits, owners) + backward) / 2


def batches(
    ids: NDArray[np.int32],
    owners: NDArray[np.int64],
    training: StudentTraining,
    rng: np.random.Generator,
    *,
    steps: int,
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of `steps`, of nearly one length: every real caption once an epoch, beside as many sampled."""
    lengths = (ids != _PAD).sum(axis=1)
    real, more = np.flatnonzero(owners != NOBODY), np.flatnonzero(owners == NOBODY)
    size = training.batch // 2 if len(more) else training.batch
    while steps:
        lanes = [rng.permutation(real)]
        if len(more):
            lanes.append(rng.permutation(np.resize(rng.permutation(more), len(real))))
        parts: list[NDArray[np.int64]] = []
        for start in range(0, len(real) // size * size, _STEPS_SORTED * size):
            chunks = [lane[start : min(start + _STEPS_SORTED * size, len(real) // size * size)] for lane in lanes]
            chunks = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]
            parts += [
                np.concatenate([chunk[at : at + size] for chunk in chunks]) for at in range(0, len(chunks[0]), size)
            ]
        for number in rng.permutation(len(parts))[:steps]:
            yield parts[number]
        steps -= min(steps, len(parts))
