"""Where a captioner starts: words and places of the picture in one space, the embedding teacher's.

A token's vector is what the token adds to the teacher's embedding of a caption (ridge regression from token counts), a
place's is what the place adds to the embedding of a picture (ridge regression from the mean of the map). Both are cut
to the directions in which tokens differ most, so that a place is near the words for what it shows from the start.

Letters: `C` channels, `E` width of the captioner, `T` embedding of the teacher, `V` vocabulary.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.flickr8k.closed_form import ridge

__all__ = ["WordSpace", "word_space"]

_PAD: Final = 0
_PICTURE_PENALTY: Final = 0.05
_TEXT_PENALTY: Final = 0.25


class WordSpace(NamedTuple):
    """Token vectors `(V, E)` of variance 1; `places (E, C)` and `level (E,)` that take a place into their space."""

    words: Tensor
    places: Tensor
    level: Tensor


def word_space(
    maps: NDArray[np.float16],
    ids: NDArray[np.int32],
    teacher_images: NDArray[np.float16],
    teacher_texts: NDArray[np.float16],
    *,
    vocabulary: int,
    width: int,
) -> WordSpace:
    """Return the start of a captioner of `width`.

    Args:
        maps: `(N, 49, C)`, pictures as they are.
        ids: `(M, L)`, captions padded with 0.
        teacher_images: `(N, T)`.
        teacher_texts: `(M, T)`.
        vocabulary: V.
        width: E.
    """
    rows = torch.from_numpy(ids.astype(np.int64))
    counts = torch.zeros(len(rows), vocabulary).scatter_add_(1, rows, torch.ones(rows.shape))
    counts[:, _PAD] = 0
    texts = torch.from_numpy(teacher_texts.astype(np.float32))
    bag = ridge(counts / counts.sum(dim=1, keepdim=True), texts - texts.mean(dim=0), _TEXT_PENALTY)
    _, _, directions = torch.linalg.svd(bag, full_matrices=False)
    directions = directions[:width]
    # Every vector gets one length: a rare word's regression is short, and so is that of a word that tells nothing.
    words = functional.normalize(bag @ directions.T + 1e-6 * torch.randn(vocabulary, width), dim=1) * width**0.5
    means = torch.from_numpy(maps.mean(axis=1, dtype=np.float32))
    images = torch.from_numpy(teacher_images.astype(np.float32))
    centre = means.mean(dim=0)
    places = (ridge(means - centre, images - images.mean(dim=0), _PICTURE_PENALTY) @ directions.T).T
    scale = width**0.5 / ((means - centre) @ places.T).norm(dim=1).mean()
    return WordSpace(words, places * scale, -(places @ centre) * scale)
