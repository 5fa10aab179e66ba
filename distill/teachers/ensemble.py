"""Several embedding teachers as one: their mean opinion on how well a picture and a text fit."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import fit_pixels
from pocketlens.distill.teachers.teacher import EmbeddingTeacher

__all__ = ["EnsembleTeacher"]


class EnsembleTeacher:
    """The members' embeddings behind each other, each scaled by the root of its share.

    The cosine of two such vectors is the mean of the members' cosines: what Vasu et al. 2024 (MobileCLIP, section 4.2)
    average over, in one vector, so that every loss works as with a single teacher.

    A picture is preprocessed once, by the spec of the member with the largest input; the others get it resized from
    there. Members that cut a picture differently would not see the same part of it.

    Args:
        members: at least one.
    """

    def __init__(self, members: Sequence[EmbeddingTeacher]) -> None:
        self._members = members
        self._scale = float(np.sqrt(1.0 / len(members)))
        self.id = " + ".join(member.id for member in members)
        self.licence = " AND ".join(dict.fromkeys(member.licence for member in members))
        self.dim = sum(member.dim for member in members)
        self.preprocess = max((m.preprocess for m in members), key=lambda spec: spec.height_px * spec.width_px)
        self.digest = hashlib.sha256("".join(member.digest for member in members).encode()).hexdigest()

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""

        def look(member: EmbeddingTeacher) -> NDArray[np.float32]:
            spec = member.preprocess
            if (spec.height_px, spec.width_px) == pixels.shape[1:3]:
                return member.embed_images(pixels)
            return member.embed_images(np.stack([fit_pixels(picture, spec) for picture in pixels]))

        return self._joined(look)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm."""
        return self._joined(lambda member: member.embed_texts(texts))

    def _joined(self, ask: Callable[[EmbeddingTeacher], NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate([self._scale * ask(member) for member in self._members], axis=1)
