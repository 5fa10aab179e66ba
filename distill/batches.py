"""What one training step sees, as a pure function of the seed and the step."""

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.distill import augment
from pocketlens.distill.concepts import find_concepts
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.pictures import PixelSource
from pocketlens.distill.reinforced import Reinforced

__all__ = ["Batch", "TrainingSet"]

_CONCEPT_POOL = 50_000  # pictures whose captions are asked what they agree on


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

    Memory: about 40 bytes a picture; pixels, ids and answers stay on disk.

    Args:
        samples: the pictures' human captions, any number each; a picture without is always given the teacher's.
        pixels: `(N, H, W, 3)` uint8 in the student's preprocessing.
        reinforced: the teachers' answers, rows as in `samples`.
        ids: `(M, T)` int32, all texts as the student's tokenizer gives them; see `pocketlens.distill.token_cache`.
        teacher_caption_share: probability that a step reads a caption by the teacher instead of a human one.
        with_concepts: whether the words that captions agree on are looked for; without, K is 0.
        seed: decides the order, the view and the caption of each step.

    Attributes:
        concepts: the words that the captions of each picture, human and the teacher's, agree on.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pixels: PixelSource,
        reinforced: Reinforced,
        ids: NDArray[np.int32],
        *,
        teacher_caption_share: float,
        with_concepts: bool = False,
        seed: int,
    ) -> None:
        self._samples = samples
        self._pixels = pixels
        self._reinforced = reinforced
        self._ids = ids
        self._share = teacher_caption_share
        self._seed = seed
        self._human = np.diff(reinforced.text_starts) - reinforced.written
        pool = _spread(len(samples), _CONCEPT_POOL) if with_concepts else []
        self.concepts = find_concepts([self._captions(row) for row in pool])

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, step: int, size: int) -> Batch:
        """Return the rows of `step`; the same `(seed, step, size)` always gives the same batch."""
        rng = np.random.default_rng((self._seed, step))
        rows = np.sort(self._rows(step, size))
        views = rng.integers(self._reinforced.views, size=size)
        human, written = self._human[rows], self._reinforced.written[rows]
        by_people = rng.integers(np.maximum(human, 1))
        by_teacher = (rng.random(size) < self._share) | (human == 0)
        which = rng.integers(written)
        texts = self._reinforced.text_starts[rows] + np.where(by_teacher, human + which, by_people)
        pixels = augment.apply(np.asarray(self._pixels[rows]), self._reinforced.params(rows, views))
        labels = self.concepts.labels([self._captions(row) for row in rows.tolist()] if self.concepts.words else rows)
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(np.asarray(self._ids[texts])),
            torch.from_numpy(self._reinforced.images(rows, views)),
            torch.from_numpy(self._reinforced.texts(texts)),
            torch.from_numpy(labels),
        )

    def _captions(self, row: int) -> tuple[str, ...]:
        return (*self._samples[row].captions, *self._reinforced.captions(row))

    def _rows(self, step: int, size: int) -> NDArray[np.int64]:
        """Rows of a step: each epoch is a permutation of its own, steps run across its border."""
        count = len(self)
        positions = np.arange(step * size, (step + 1) * size)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // count):
            order = np.random.default_rng((self._seed, 1 << 40, int(epoch))).permutation(count)
            here = positions // count == epoch
            rows[here] = order[positions[here] % count]
        return rows


def _spread(count: int, most: int) -> list[int]:
    """Return `range(count)`, or `most` numbers spread evenly over it."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []
