"""Two rankings of the same pictures held against each other, picture by picture."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, retrieval_ranks

__all__ = ["WHAT", "hits", "less"]

_WITHIN: Final = (1, 10)
WHAT: Final = tuple(f"r{k}_{way}" for k in _WITHIN for way in ("i2t", "t2i"))
"""The rows of `hits`."""


def hits(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `(4, N)`, as `WHAT` names its rows, for `images (N, D)` and their `texts (5 N, D)`.

    Of a picture: whether a text of its own is among the first k; the share of its texts with it among their first k.
    """
    owners = np.repeat(np.arange(len(images)), 5)
    of_images, of_texts = retrieval_ranks(images, texts, owners)
    rows = [row for k in _WITHIN for row in (of_images <= k, (of_texts <= k).reshape(-1, 5).mean(axis=1))]
    return np.stack(rows).astype(np.float64)


def less(a: NDArray[np.float64], b: NDArray[np.float64]) -> Mapping[str, Figure]:
    """Return the means of `a - b`, both of `hits`, with 95 % bootstrap intervals over pictures."""
    bootstrap = Bootstrap(a.shape[1], seed=0)
    return {name: bootstrap.mean(row) for name, row in zip(WHAT, a - b, strict=True)}
