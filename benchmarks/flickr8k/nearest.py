"""Captions that nobody writes: a human caption of the training pictures that lie nearest (Devlin et al. 2015).

Letters: `Q` asked pictures, `N` training pictures, `D` embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_captions"]


def nearest_captions(
    asked: NDArray[np.float32],
    pictures: NDArray[np.float32],
    texts: NDArray[np.float32],
    captions: Sequence[str],
    *,
    neighbours: int = 1,
) -> list[str]:
    """Return, for each of `asked (Q, D)`, the caption of its nearest pictures that is nearest to their mean.

    Args:
        asked: of unit norm.
        pictures: `(N, D)` of unit norm.
        texts: `(5 N, D)` of unit norm, the five captions of a picture in a row.
        captions: the texts themselves.
        neighbours: how many pictures give their captions.
    """
    nearest = np.argpartition(-(asked @ pictures.T), neighbours, axis=1)[:, :neighbours]
    out = []
    for rows in nearest:
        candidates = (rows[:, None] * 5 + np.arange(5)).ravel()
        vectors = texts[candidates]
        out.append(captions[candidates[int((vectors @ vectors.mean(axis=0)).argmax())]])
    return out
