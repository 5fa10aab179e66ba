"""The figures that every stage gives."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.flickr8k.objects import hallucination
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, recall_at_k

__all__ = [
    "judged_captions",
    "judged_recall",
]


def judged_recall(images: NDArray[np.float32], texts: NDArray[np.float32]) -> dict[str, Figure]:
    """Return recall@k both ways of `images (N, D)`, `texts (5 N, D)`."""
    owners = np.repeat(np.arange(len(images)), 5)
    return recall_at_k(images, texts, owners, bootstrap=Bootstrap(len(images), seed=0))


def judged_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Figure]:
    """Return CIDEr, BLEU, length and hallucination of `captions`."""
    bootstrap = Bootstrap(len(captions), seed=0)
    return caption_figures(captions, references, bootstrap=bootstrap) | hallucination(
        captions, references, bootstrap=bootstrap
    )
