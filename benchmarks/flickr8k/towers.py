"""The student's retrieval: image heads and text tower learn from the teacher's cached embeddings.

Letters: `B` captions of a step, `D` embedding of the student, `T` of the teacher.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.flickr8k.descent import Descent, StudentTraining, dropping
from benchmarks.flickr8k.small import Lesson, as_maps, encoded
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill import losses
from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.student import Student

__all__ = ["dropped_words", "train_towers"]

_MAX_SCALE: Final = math.log(100)
_PAD, _UNKNOWN = 0, 3


def train_towers(
    student: Student,
    tokenizer: Tokenizer,
    lesson: Lesson,
    training: StudentTraining,
    *,
    directions: Tensor,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train the text tower and the image heads in place; return the loss of each step.

    Args:
        student: its backbone stays as it is.
        tokenizer: the student's.
        lesson: what is learnt from.
        training: how.
        directions: `(T, D)`, where the projection into the teacher's space starts.
        after_epoch: called with the epoch's number and loss while the student has its mean weights, in eval mode.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    ids = encoded(tokenizer, lesson.texts)
    projector = nn.Linear(directions.shape[1], directions.shape[0], bias=False)
    image, text = student.image_encoder, student.text_encoder
    with torch.no_grad():
        projector.weight.copy_(directions)
        student.logit_scale.fill_(math.log(1 / training.temperature))
    heads = [image.projection, *([image.attention] if image.attention is not None else [])]
    weights: list[Tensor] = [
        *text.parameters(),
        *(weight for head in heads for weight in head.parameters()),
        *projector.parameters(),
        student.logit_scale,
    ]
    each = len(ids) // training.batch
    descent = Descent(weights, training, steps=training.epochs * each)
    dropout, curve = nn.Dropout(training.dropout), []
    with dropping(cast("list[Block]", list(text.blocks)), dropout):
        student.train()
        for step, rows in enumerate(_bucketed(ids, training, rng), 1):
            pictures, view = rows // 5, rng.integers(training.views, size=len(rows))
            maps = dropout(torch.from_numpy(lesson.maps[view, pictures].astype(np.float32)))
            images, _ = image.heads(as_maps(maps))
            texts = text(dropped_words(ids[rows], training, rng))
            terms = _terms(
                images,
                texts,
                torch.from_numpy(lesson.teacher_images[view, pictures].astype(np.float32)),
                torch.from_numpy(lesson.teacher_texts[rows].astype(np.float32)),
                projector,
                student.logit_scale.exp(),
                training,
            )
            curve.append(descent.step(torch.stack(terms).sum()))
            with torch.no_grad():
                student.logit_scale.clamp_(max=_MAX_SCALE)
            if step % each == 0:
                student.eval()
                with descent.averaged():
                    after_epoch(step // each, float(np.mean(curve[-each:])))
                student.train()
    descent.finish()
    student.eval()
    return curve


def _terms(
    images: Tensor,
    texts: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    projector: nn.Linear,
    scale: Tensor,
    training: StudentTraining,
) -> list[Tensor]:
    weights, terms = training.losses, []
    if weights.contrastive:
        terms.append(weights.contrastive * losses.contrastive(images, texts, scale))
    if weights.affinity:
        mimicry = losses.affinity(images, texts, scale, teacher_images, teacher_texts, temperature=training.temperature)
        terms.append(weights.affinity * mimicry)
    if weights.feature:
        near = losses.feature(projector(images), teacher_images) + losses.feature(projector(texts), teacher_texts)
        terms.append(weights.feature * near)
    return terms


def dropped_words(ids: NDArray[np.int32], training: StudentTraining, rng: np.random.Generator) -> Tensor:
    """Return `ids (B, L)` as short as they are, with some of their words unknown."""
    longest = min(training.tokens, int((ids != _PAD).sum(axis=1).max()))
    rows = ids[:, :longest].copy()
    rows[(rng.random(rows.shape) < training.word_dropout) & (rows > _UNKNOWN)] = _UNKNOWN
    return torch.from_numpy(rows)


def _bucketed(
    ids: NDArray[np.int32], training: StudentTraining, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield rows of captions, one of a picture at a time and of nearly one length, every caption once an epoch."""
    lengths, pictures = (ids != _PAD).sum(axis=1), len(ids) // 5
    for _ in range(training.epochs):
        turns = rng.permuted(np.tile(np.arange(5), (pictures, 1)), axis=1).T
        order = np.concatenate([(shuffled := rng.permutation(pictures)) * 5 + turn[shuffled] for turn in turns])
        order = order[: len(order) // training.batch * training.batch]
        parts: list[NDArray[np.int64]] = []
        for start in range(0, len(order), 6 * training.batch):
            chunk = order[start : start + 6 * training.batch]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            parts += [chunk[at : at + training.batch] for at in range(0, len(chunk), training.batch)]
        for number in rng.permutation(len(parts)):
            yield parts[number]
