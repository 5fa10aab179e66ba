"""What the captioning teacher finds likely at each token of a caption: stored once, learnt from in every epoch.

Token-level distillation, Kim & Rush 2016, section 3.1, with the teacher's distribution cut to its likeliest tokens and
scaled to sum 1.

Letters: `N` pictures, `C` captions of a picture, `T` tokens of a caption, `k` alternatives, `R` real tokens.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Likely", "likely_cross_entropy"]


class Likely(NamedTuple):
    """The likeliest successors of each token but the last of `(N, C, T)` ids.

    Attributes:
        ids: `(N, C, T - 1, k)` int16, the likeliest first; 0 behind a caption's end.
        logprobs: `(N, C, T - 1, k)` float16, likewise.
    """

    ids: NDArray[np.int16]
    logprobs: NDArray[np.float16]

    def of(
        self, rows: NDArray[np.int64], chosen: NDArray[np.int64], *, real: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        """Return ids and log-probabilities `(R, k)` for the `real (B K, n)` tokens of the `chosen (B, K)` captions."""
        ids, logprobs = (
            stored[rows, chosen, : real.shape[1]].reshape(*real.shape, -1)[real] for stored in (self.ids, self.logprobs)
        )
        return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(logprobs.astype(np.float32))

    def part(self, pictures: slice = slice(None), captions: slice = slice(None)) -> "Likely":
        """Return what belongs to some pictures and captions alone."""
        return Likely(self.ids[pictures, captions], self.logprobs[pictures, captions])

    @classmethod
    def read(cls, path: Path) -> "Likely":
        """Return what `write` wrote."""
        with np.load(path) as stored:
            return cls(stored["ids"], stored["logprobs"])

    def write(self, path: Path) -> None:
        """Write an npz file."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, ids=self.ids, logprobs=self.logprobs)
        partial.replace(path)


def likely_cross_entropy(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Return the mean over tokens of the cross-entropy of `logits (R, V)` to `ids` and `logprobs (R, k)`."""
    scores = logits.log_softmax(dim=-1).gather(1, ids)
    loss: Tensor = -(functional.softmax(logprobs, dim=-1) * scores).sum(dim=-1).mean()
    return loss
