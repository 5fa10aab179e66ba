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
from benchmarks.flickr8k.likely import Likely, likely_cross_entropy
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
    "found_likely",
    "train_captions",
    "written",
]

_PAD = 0
_AT_ONCE = 100
_SCORED_AT_ONCE = 20
_KEPT = 16


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
        likely: what the teacher finds likely in its own caption (if there is one) and then in the human ones.
    """

    maps: NDArray[np.float16]
    human: NDArray[np.int32]
    teacher: NDArray[np.int32] | None = None
    likely: Likely | None = None

    @property
    def captions(self) -> NDArray[np.int32]:
        """All captions of each picture, `(N, C, T)`, the teacher's first; cut to what the teacher's can be."""
        if self.teacher is None:
            return self.human
        return np.concatenate([self.teacher[:, None], self.human[..., : self.teacher.shape[1]]], axis=1)

    def without_its_caption(self) -> "CaptionLesson":
        """Return the lesson without the teacher's captions; what it finds likely in the human ones stays."""
        if self.teacher is None or self.likely is None:
            return self._replace(teacher=None)
        return self._replace(teacher=None, likely=self.likely.part(captions=slice(1, None)))


class CaptionTraining(StudentTraining, frozen=True, kw_only=True):
    """How a captioner is trained; `batch` counts pictures, `losses.caption` and `losses.token` weigh the two terms.

    Attributes:
        captions: how many of a picture's captions a step takes, the teacher's among them where there is one.
    """

    batch: int = 8
    learning_rate: float = 1.1e-3
    ema: float = 0.998
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
    dropout, curve, captions = nn.Dropout(training.dropout), [], lesson.captions
    for step in range(descent.steps):
        if step % each == 0:
            order = rng.permutation(count)
        rows = order[step % each * training.batch :][: training.batch]
        view = rng.integers(training.views, size=len(rows))
        maps = torch.from_numpy(lesson.maps[view, rows].astype(np.float32))
        chosen = _drawn(lesson, rows, training, rng)
        ids = captions[rows[:, None], chosen, : training.tokens].reshape(chosen.size, -1)
        ids = ids[:, : int((ids != _PAD).sum(axis=1).max())]
        packed = packed_states(model.decoder, model.visual(dropout(maps)), torch.from_numpy(ids), dropped=dropout)
        logits = model.decoder.logits(dropout(packed.states))
        loss = functional.cross_entropy(logits, packed.targets, label_smoothing=training.smoothing)
        if lesson.likely is not None and training.losses.token:
            likely = lesson.likely.of(rows[:, None], chosen, real=ids[:, 1:] != _PAD)
            loss = training.losses.caption * loss + training.losses.token * likely_cross_entropy(logits, *likely)
        curve.append(descent.step(loss))
        if (step + 1) % each == 0:
            with descent.averaged():
                after_epoch((step + 1) // each, float(np.mean(curve[-each:])))
    descent.finish()
    return curve


def _drawn(
    lesson: CaptionLesson, rows: NDArray[np.int64], training: CaptionTraining, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return `(B, K)`: which captions of each picture a step takes, the teacher's always where there is one."""
    first = int(lesson.teacher is not None)
    human, taken = lesson.human.shape[1], training.captions - first
    chosen = np.tile(np.arange(human), (len(rows), 1))
    if taken < human:
        chosen = rng.permuted(chosen, axis=1)[:, :taken]
    return np.concatenate([np.zeros((len(rows), first), dtype=np.int64), chosen + first], axis=1)


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


@torch.inference_mode()
def found_likely(model: Captioning, maps: NDArray[np.float16], captions: NDArray[np.int32]) -> Likely:
    """Return what `model` finds likely in `captions (N, C, T)` of the pictures with `maps (N, 49, C)`."""
    captions = captions[..., : model.decoder.caption_tokens + 1]
    shape = (*captions.shape[:2], captions.shape[2] - 1, _KEPT)
    found = Likely(np.zeros(shape, dtype=np.int16), np.zeros(shape, dtype=np.float16))
    for start in range(0, len(maps), _SCORED_AT_ONCE):
        rows = slice(start, start + _SCORED_AT_ONCE)
        visual = model.visual(torch.from_numpy(maps[rows].astype(np.float32)))
        packed = packed_states(model.decoder, visual, torch.from_numpy(captions[rows].reshape(-1, captions.shape[2])))
        top = model.decoder.logits(packed.states).log_softmax(dim=-1).topk(_KEPT, dim=-1)
        real = captions[rows, :, 1:] != _PAD
        found.ids[rows][real] = top.indices.to(torch.int16).numpy()
        found.logprobs[rows][real] = top.values.to(torch.float16).numpy()
    return found
