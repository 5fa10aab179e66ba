"""What distillation needs of a teacher: two small protocols.

Letters: `B` batch, `D` width of the teacher's embedding, `H, W` its own input size.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import PreprocessSpec

__all__ = ["CaptioningTeacher", "EmbeddingTeacher", "TeacherCaption"]


class TeacherCaption(msgspec.Struct, frozen=True, eq=False):
    """One caption.

    Attributes:
        text: the caption.
        logprob: the sum of the natural log-probabilities of its tokens, the end included.
        token_ids: `(L,)` int32, its ids in the captioner's vocabulary, the end included; empty where nobody asked.
        top_ids: `(L, k)` int32, the k likeliest ids at each position, the likeliest first; likewise.
        top_logprobs: `(L, k)` float32, their natural log-probabilities.
    """

    text: str
    logprob: float
    token_ids: NDArray[np.int32] = msgspec.field(default_factory=lambda: np.empty(0, np.int32))
    top_ids: NDArray[np.int32] = msgspec.field(default_factory=lambda: np.empty((0, 0), np.int32))
    top_logprobs: NDArray[np.float32] = msgspec.field(default_factory=lambda: np.empty((0, 0), np.float32))


class EmbeddingTeacher(Protocol):
    """A dual encoder: pictures and texts into one space. `digest` changes whenever its answers may."""

    id: str
    licence: str
    dim: int
    preprocess: PreprocessSpec
    digest: str

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` of unit norm for `pixels (B, H, W, 3)`, preprocessed by `self.preprocess`."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` of unit norm."""
        ...


class CaptioningTeacher(Protocol):
    """Pictures to sentences. `digest` changes whenever its answers may."""

    id: str
    licence: str
    preprocess: PreprocessSpec
    digest: str

    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        """Return one greedy caption a picture for `pixels (B, H, W, 3)`."""
        ...

    def captions(self, pixels: NDArray[np.uint8], *, count: int, top_k: int) -> list[list[TeacherCaption]]:
        """Return `count` captions a picture, the likeliest first; a single one is the greedy one.

        With `top_k` above 0 each has its ids and the `top_k` likeliest ids at each of its positions.
        """
        ...
