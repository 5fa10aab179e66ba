"""What one training step sees, as a pure function of the seed and the step."""

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill import augment
from pocketlens.distill.concepts import find_concepts
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.reinforce import Reinforced

__all__ = ["Batch", "TrainingSet"]


class Batch(msgspec.Struct, frozen=True):
    """One step's rows.

    Attributes:
        pixels: `(B, H, W, 3)` uint8.
        ids: `(B, T)` int32, one caption each.
        teacher_images, teacher_texts: `(B, D)` float32.
        concepts: `(B, K)` bool, see `pocketlens.distill.concepts`.
    """

    pixels: Tensor
    ids: Tensor
    teacher_images: Tensor
    teacher_texts: Tensor
    concepts: Tensor

    def split(self, count: int) -> "list[Batch]":
        """Return the rows in `count` parts of nearly the same size, in order; fewer if a part would have one row."""
        count = max(1, min(count, len(self.ids) // 2))
        fields = [torch.tensor_split(getattr(self, name), count) for name in self.__struct_fields__]
        return [Batch(*part) for part in zip(*fields, strict=True)]


class TrainingSet:
    """Pictures, captions and what the teachers said about them, ready to be drawn from.

    Args:
        samples: the pictures' human captions, the same number each.
        pixels: `(N, H, W, 3)` uint8 in the student's preprocessing.
        reinforced: the teachers' answers, rows as in `samples`.
        tokenizer: the student's.
        teacher_caption_share: probability that a step reads the teacher's caption instead of a human one.
        with_concepts: whether the words that captions agree on are looked for; without, K is 0.
        seed: decides the order, the view and the caption of each step.

    Attributes:
        concepts: the words that the captions of each picture, human and the teacher's, agree on.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pixels: NDArray[np.uint8],
        reinforced: Reinforced,
        tokenizer: Tokenizer,
        *,
        teacher_caption_share: float,
        with_concepts: bool = False,
        seed: int,
    ) -> None:
        self._pixels = pixels
        self._reinforced = reinforced
        self._share = teacher_caption_share
        self._seed = seed
        captions = [(*sample.captions, written) for sample, written in zip(samples, reinforced.captions, strict=True)]
        texts = [text for of_picture in captions for text in of_picture]
        self._ids = tokenizer.encode_batch(texts).reshape(len(samples), -1, tokenizer.text_length)
        # Captions of nothing agree on nothing.
        self.concepts = find_concepts(captions if with_concepts else [()] * len(captions))

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
            torch.from_numpy(self.concepts.labels[rows]),
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
