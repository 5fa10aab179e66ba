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


class TeacherCaption(msgspec.Struct, frozen=True):
    """One caption with the sum of the natural log-probabilities of its tokens, the end included."""

    text: str
    logprob: float


class EmbeddingTeacher(Protocol):
    """A dual encoder: pictures and texts into one space."""

    id: str
    licence: str
    dim: int
    preprocess: PreprocessSpec

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` of unit norm for `pixels (B, H, W, 3)`, preprocessed by `self.preprocess`."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` of unit norm."""
        ...


class CaptioningTeacher(Protocol):
    """Pictures to sentences."""

    id: str
    licence: str
    preprocess: PreprocessSpec

    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        """Return one greedy caption a picture for `pixels (B, H, W, 3)`."""
        ...
