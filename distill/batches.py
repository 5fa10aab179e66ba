"""What one training step sees, as a pure function of the seed and the step."""

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill import augment
from pocketlens.distill.reinforce import Reinforced
from pocketlens.distill.scenes import Sample

__all__ = ["Batch", "TrainingSet"]


class Batch(msgspec.Struct, frozen=True):
    """One step's rows. `pixels (B, H, W, 3)` uint8, `ids (B, T)` int32, teacher vectors float32 `(B, D)`."""

    pixels: Tensor
    ids: Tensor
    teacher_images: Tensor
    teacher_texts: Tensor


class TrainingSet:
    """Pictures, captions and what the teachers said about them, ready to be drawn from.

    Args:
        samples: the pictures' human captions, the same number each.
        pixels: `(N, H, W, 3)` uint8 in the student's preprocessing.
        reinforced: the teachers' answers, rows as in `samples`.
        tokenizer: the student's.
        teacher_caption_share: probability that a step reads the teacher's caption instead of a human one.
        seed: decides the order, the view and the caption of each step.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pixels: NDArray[np.uint8],
        reinforced: Reinforced,
        tokenizer: Tokenizer,
        *,
        teacher_caption_share: float,
        seed: int,
    ) -> None:
        self._pixels = pixels
        self._reinforced = reinforced
        self._share = teacher_caption_share
        self._seed = seed
        texts = [
            text
            for sample, written in zip(samples, reinforced.captions, strict=True)
            for text in (*sample.captions, written)
        ]
        self._ids = tokenizer.encode_batch(texts).reshape(len(samples), -1, tokenizer.text_length)

    def batch(self, step: int, size: int) -> Batch:
        """Return the rows of `step`; the same `(seed, step, size)` always gives the same batch."""
        rng = np.random.default_rng((self._seed, step))
        rows = np.sort(self._rows(step, size))
        views = rng.integers(self._reinforced.params.shape[1], size=size)
        human = rng.integers(self._ids.shape[1] - 1, size=size)
        texts = np.where(rng.random(size) < self._share, self._ids.shape[1] - 1, human)
        pixels = augment.apply(np.asarray(self._pixels[rows]), self._reinforced.params[rows, views])
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(self._ids[rows, texts]),
            torch.from_numpy(self._reinforced.images[rows, views].astype(np.float32)),
            torch.from_numpy(self._reinforced.texts[rows, texts].astype(np.float32)),
        )

    def _rows(self, step: int, size: int) -> NDArray[np.int64]:
        """Rows of a step: each epoch is a permutation of its own, steps run across its border."""
        count = len(self._ids)
        positions = np.arange(step * size, (step + 1) * size)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // count):
            order = np.random.default_rng((self._seed, 1 << 40, int(epoch))).permutation(count)
            here = positions // count == epoch
            rows[here] = order[positions[here] % count]
        return rows
