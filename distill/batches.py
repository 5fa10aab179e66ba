"""What one training step sees, as a pure function of the seed and the step."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.distill import augment
from pocketlens.distill.concepts import find_concepts
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.pictures import PixelSource
from pocketlens.distill.reinforced import Alternatives, Reinforced

__all__ = ["Batch", "TrainingSet", "part_slices"]

_ALL = slice(None)

_CONCEPT_POOL = 50_000  # pictures whose captions are asked what they agree on


class Batch(msgspec.Struct, frozen=True):
    """One step's rows.

    Attributes:
        pixels: `(B, H, W, 3)` uint8; `(B, 0, 0, 3)` where only the labels were asked for.
        ids: `(B, T)` int32, one caption each.
        teacher_images, teacher_texts: `(B, D)` float32.
        concepts: `(B, K)` bool, see `pocketlens.distill.concepts`.
        top_ids, top_logprobs: `(B, L, k)`, the captioner's likeliest tokens where the caption is its own and they were
            kept; otherwise 0.
    """

    pixels: Tensor
    ids: Tensor
    teacher_images: Tensor
    teacher_texts: Tensor
    concepts: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def rows(self, rows: slice) -> "Batch":
        """Return a part of the batch."""
        return Batch(*(getattr(self, name)[rows] for name in self.__struct_fields__))

    def split(self, count: int) -> "list[Batch]":
        """Return the rows in `part_slices`."""
        return [self.rows(part) for part in part_slices(len(self.ids), count)]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(*(getattr(self, name).to(device) for name in self.__struct_fields__))


def part_slices(size: int, count: int) -> list[slice]:
    """Return `size` rows as `count` slices of nearly the same length; fewer if one would have a single row."""
    count = max(1, min(count, size // 2))
    borders = [0]
    for part in range(count):
        borders.append(borders[-1] + size // count + (part < size % count))
    return [slice(*pair) for pair in pairwise(borders)]


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
        with_alternatives: whether the captioner's likeliest tokens are given with its captions.
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
        with_alternatives: bool = False,
        seed: int,
    ) -> None:
        self._samples = samples
        self._pixels = pixels
        self._reinforced = reinforced
        self._ids = ids
        self._share = teacher_caption_share
        self._seed = seed
        self._with_alternatives = with_alternatives
        self._human = np.diff(reinforced.text_starts) - reinforced.written
        pool = _spread(len(samples), _CONCEPT_POOL) if with_concepts else []
        self.concepts = find_concepts([self._captions(row) for row in pool])

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, step: int, size: int, *, pixels: slice | None = _ALL) -> Batch:
        """Return the rows of `step`; the same `(seed, step, size)` always gives the same batch.

        Args:
            step: which.
            size: B, rows of the whole batch.
            pixels: the rows that are returned, by default all; `None` for the labels of all without their pixels.
        """
        rng = np.random.default_rng((self._seed, step))
        rows = self.rows(step, size)
        views = rng.integers(self._reinforced.views, size=size)
        human, written = self._human[rows], self._reinforced.written[rows]
        by_people = rng.integers(np.maximum(human, 1))
        by_teacher = (rng.random(size) < self._share) | (human == 0)
        which = rng.integers(written)
        kept = slice(0, size) if pixels is None else pixels
        rows, views, by_teacher, which = rows[kept], views[kept], by_teacher[kept], which[kept]
        texts = self._reinforced.text_starts[rows] + np.where(by_teacher, human[kept] + which, by_people[kept])
        seen = np.empty((len(rows), 0, 0, 3), np.uint8)
        if pixels is not None:
            seen = augment.apply(np.asarray(self._pixels[rows]), self._reinforced.params(rows, views))
        labels = self.concepts.labels([self._captions(row) for row in rows.tolist()] if self.concepts.words else rows)
        top_ids, top_logprobs = self._alternatives(rows, which, by_teacher)
        return Batch(
            torch.from_numpy(seen),
            torch.from_numpy(np.asarray(self._ids[texts])),
            torch.from_numpy(self._reinforced.images(rows, views)),
            torch.from_numpy(self._reinforced.texts(texts)),
            torch.from_numpy(labels),
            torch.from_numpy(top_ids),
            torch.from_numpy(top_logprobs),
        )

    def _alternatives(
        self, rows: NDArray[np.intp], which: NDArray[np.intp], by_teacher: NDArray[np.bool_]
    ) -> Alternatives:
        if not self._with_alternatives:
            return np.zeros((len(rows), 0, 0), np.int32), np.zeros((len(rows), 0, 0), np.float32)
        _, (top_ids, top_logprobs) = self._reinforced.alternatives(rows, which)
        # A caption by people has none; 0 is the log-probability of a token that is certain, so it marks nothing real.
        return top_ids * by_teacher[:, None, None], np.minimum(top_logprobs, -1e-6) * (top_logprobs != 0) * by_teacher[
            :, None, None
        ]

    def _captions(self, row: int) -> tuple[str, ...]:
        return (*self._samples[row].captions, *self._reinforced.captions(row))

    def references(self, row: int) -> tuple[str, ...]:
        """Return the human captions of a picture, or the teacher's where there is none."""
        return tuple(self._samples[row].captions) or self._reinforced.captions(row)

    def rows(self, step: int, size: int) -> NDArray[np.int64]:
        """Return the pictures of a step, `(size,)`, in the order of `batch`.

        Each epoch is a permutation of its own, steps run across its border.
        """
        count = len(self)
        positions = np.arange(step * size, (step + 1) * size)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // count):
            order = np.random.default_rng((self._seed, 1 << 40, int(epoch))).permutation(count)
            here = positions // count == epoch
            rows[here] = order[positions[here] % count]
        return np.sort(rows)


def _spread(count: int, most: int) -> list[int]:
    """Return `range(count)`, or `most` numbers spread evenly over it."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []
