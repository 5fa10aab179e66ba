"""Training of a caption decoder on cached maps: the teacher's and the student's alike.

Letters: `B` pictures, `K` captions of a picture, `P` visual tokens, `N` text tokens, `E` width, `V` vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.flickr8k.descent import Descent, StudentTraining
from benchmarks.flickr8k.packed import packed_states
from benchmarks.flickr8k.search import searched, texts
from benchmarks.flickr8k.small import as_maps
from benchmarks.flickr8k.word_space import WordSpace
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.caption_decoder import CaptionDecoder
from pocketlens.distill.students.student import Student

__all__ = [
    "CaptionLesson",
    "CaptionTraining",
    "Captioning",
    "StudentCaptioner",
    "found_captions",
    "train_captions",
    "written",
]

_PAD = 0
_AT_ONCE = 100


class Captioning(Protocol):
    """What a captioner on cached maps is made of."""

    @property
    def decoder(self) -> CaptionDecoder:
        """Visual tokens and text so far -> states."""
        ...

    def visual(self, maps: Tensor) -> Tensor:
        """`(B, 49, C)` -> visual tokens `(B, P, E)`."""
        ...

    def weights(self) -> list[Tensor]:
        """Return what is trained."""
        ...


class StudentCaptioner(NamedTuple):
    """The captioning half of a student: adapter and decoder. Its backbone, heads and text tower stay as they are."""

    student: Student

    @property
    def decoder(self) -> CaptionDecoder:
        """The student's."""
        return self.student.caption_decoder

    @torch.no_grad()
    def start(self, space: WordSpace) -> None:
        """Begin with words and places in one space."""
        adapter, decoder = self.student.image_encoder.adapter, self.decoder
        adapter.weight.copy_(space.places.view_as(adapter.weight))
        decoder.tokens.weight.copy_(space.words)
        # Smaller logits than token vectors: before the first step every word is about as likely as any other.
        decoder.logits.weight.copy_(space.words * (0.5 * space.words.shape[1] ** -0.5))
        if adapter.bias is not None:
            adapter.bias.copy_(space.level)

    def visual(self, maps: Tensor) -> Tensor:
        """`(B, 49, C)` -> visual tokens `(B, P, E)`."""
        tokens: Tensor = self.student.image_encoder.heads(as_maps(maps))[1]
        return tokens

    def weights(self) -> list[Tensor]:
        """Return what is trained."""
        image = self.student.image_encoder
        adapter = [*image.adapter.parameters(), *image.adapter_norm.parameters(), image.positions]
        return [*adapter, *self.decoder.parameters()]


class CaptionLesson(NamedTuple):
    """What is learnt from.

    Attributes:
        maps: `(views, N, 49, C)` float16.
        human: `(N, 5, T)` int32, ids from start to end token, padded with 0.
        teacher: `(N, T)` likewise, the teacher's caption of each picture; `None` for human captions alone.
    """

    maps: NDArray[np.float16]
    human: NDArray[np.int32]
    teacher: NDArray[np.int32] | None = None


class CaptionTraining(StudentTraining, frozen=True, kw_only=True):
    """How a captioner is trained; `batch` counts pictures.

    Attributes:
        captions: how many of a picture's captions a step takes, the teacher's among them where there is one.
    """

    batch: int = 16
    learning_rate: float = 1.2e-3
    ema: float = 0.995
    tokens: int = 22
    views: int = 2
    captions: int = 5


def train_captions(
    model: Captioning,
    lesson: CaptionLesson,
    training: CaptionTraining,
    *,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train `model` in place by cross-entropy; return the loss of each step.

    Args:
        model: what is trained; its weights hold their running mean afterwards.
        lesson: what is learnt from.
        training: how.
        after_epoch: called with the epoch's number and loss while the model has its mean weights.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    count = len(lesson.human)
    each = count // training.batch
    descent = Descent(model.weights(), training, steps=training.epochs * each)
    dropout, curve = nn.Dropout(training.dropout), []
    for step in range(descent.steps):
        if step % each == 0:
            order = rng.permutation(count)
        rows = order[step % each * training.batch :][: training.batch]
        view = rng.integers(training.views, size=len(rows))
        maps = torch.from_numpy(lesson.maps[view, rows].astype(np.float32))
        ids = torch.from_numpy(_drawn_captions(lesson, rows, training, rng))
        packed = packed_states(model.decoder, model.visual(dropout(maps)), ids, dropped=dropout)
        logits = model.decoder.logits(dropout(packed.states))
        loss = functional.cross_entropy(logits, packed.targets, label_smoothing=training.smoothing)
        curve.append(descent.step(loss))
        if (step + 1) % each == 0:
            with descent.averaged():
                after_epoch((step + 1) // each, float(np.mean(curve[-each:])))
    descent.finish()
    return curve


def _drawn_captions(
    lesson: CaptionLesson,
    rows: NDArray[np.int64],
    training: CaptionTraining,
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """Return `(B K, N)`, the captions of a picture in a row, cut to `training.tokens` and to the longest."""
    human = lesson.human[rows, :, : training.tokens]
    taken = training.captions - (lesson.teacher is not None)
    if taken < human.shape[1]:
        chosen = rng.permuted(np.tile(np.arange(human.shape[1]), (len(rows), 1)), axis=1)[:, :taken]
        human = np.take_along_axis(human, chosen[..., None], axis=1)
    if lesson.teacher is not None:
        human = np.concatenate([lesson.teacher[rows, None, : training.tokens], human], axis=1)
    ids = human.reshape(-1, human.shape[2])
    return ids[:, : int((ids != _PAD).sum(axis=1).max())]


@torch.inference_mode()
def found_captions(
    model: Captioning, tokenizer: Tokenizer, maps: NDArray[np.float16], *, beams: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return a caption of each of `maps (N, 49, C)`, ids `(N, T)` from start to end token, and its log-probability."""
    ids = np.zeros((len(maps), model.decoder.caption_tokens + 1), dtype=np.int32)
    ids[:, 0] = tokenizer.bos_id
    scores = np.zeros(len(maps), dtype=np.float32)
    for start in range(0, len(maps), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        part = torch.from_numpy(maps[rows].astype(np.float32))
        found = searched(model.decoder, model.visual(part), tokenizer, beams=beams)
        ids[rows, 1 : found.ids.shape[1] + 1] = found.ids.numpy()
        scores[rows] = found.scores.numpy()
    return ids, scores


def written(model: Captioning, tokenizer: Tokenizer, maps: NDArray[np.float16], *, beams: int = 1) -> list[str]:
    """Return the text of a caption of each of `maps (N, 49, C)`."""
    return texts(tokenizer, found_captions(model, tokenizer, maps, beams=beams)[0])
