"""CLIPScore: how well captions fit their pictures in the eyes of another model, without human captions.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021. The judge must not be
the model that is judged: a captioner that was trained towards a space looks good in that space.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure

__all__ = ["PROMPT", "WEIGHT", "check_judge", "clip_scores", "clipscore_figures", "reference_scores"]

WEIGHT: Final = 2.5
"""w of equation 1: brings scores of CLIP ViT-B/32 to about 0 to 1; another judge has another scale."""

PROMPT: Final = "A photo depicts "
"""Put before each caption, as the paper does (section 3)."""


def clip_scores(images: NDArray[np.float32], captions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `(N,)`: `w * max(cos, 0)`, equation 1, for `images (N, D)` and `captions (N, D)` of unit norm."""
    cosines = np.einsum("nd,nd->n", images.astype(np.float64), captions.astype(np.float64))
    scores: NDArray[np.float64] = WEIGHT * np.maximum(cosines, 0.0)
    return scores


def reference_scores(
    scores: NDArray[np.float64],
    captions: NDArray[np.float32],
    references: NDArray[np.float32],
    owners: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return RefCLIPScore `(N,)`: the harmonic mean of CLIPScore and the closest reference's cosine (section 3.1).

    Args:
        scores: `(N,)`, from `clip_scores`.
        captions: `(N, D)`.
        references: `(M, D)`, human captions.
        owners: `(M,)`, the picture of each.
    """
    cosines = np.einsum("md,md->m", references.astype(np.float64), captions[owners].astype(np.float64))
    closest = np.zeros(len(scores))
    np.maximum.at(closest, owners, cosines)  # starts at 0: max(cos, 0)
    total = scores + closest
    result = np.zeros(len(scores))
    np.divide(2.0 * scores * closest, total, out=result, where=total > 0)
    return result


def clipscore_figures(
    scores: NDArray[np.float64], with_references: NDArray[np.float64], *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return `clipscore` and `ref_clipscore`, the means of both `(N,)`."""
    return {"clipscore": bootstrap.mean(scores), "ref_clipscore": bootstrap.mean(with_references)}


def check_judge(judge: str, judge_identity: Sequence[str], subject: str, identity: Sequence[str]) -> None:
    """Check that the judge is not what it judges.

    Args:
        judge: its name.
        judge_identity: digests of the judge's models.
        subject: name of what is judged.
        identity: digests of its models.

    Raises:
        DataError: they share a model.
    """
    if set(judge_identity) & set(identity):
        raise DataError(
            f"judge {judge}",
            expected="another model than the one that is judged",
            found=f"{subject}, the same model",
            remedy="Name another judge: CLIPScore of a model by itself is inflated.",
        )
