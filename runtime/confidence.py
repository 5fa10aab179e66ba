"""How sure the model is of a caption: a logistic model over a few features of the caption itself.

The features, all computed in the pass that made the caption:

- `mean_logprob`: mean natural log-probability of the tokens that the model chose (a prompt's are the
  caller's and do not count). Biased by length, so it is not alone.
- `low_logprob`: the 20 % quantile of the token log-probabilities: the weak fifth of the caption.
- `min_logprob`: the weakest token. A single hallucinated word shows here first.
- `similarity`: cosine of the picture's and the caption's embedding under the bundle's own towers;
  0 where the bundle has no text encoder.

Log-probabilities are clipped at `FLOOR`, so that one impossible token cannot dominate.
The result is a score in [0, 1] that orders captions and is roughly a probability on pictures like
those it was fitted on; it carries no guarantee about the risk of what is accepted.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import ConfidenceSpec
from pocketlens.core.captions import Caption
from pocketlens.core.errors import BundleSchemaError, DataError

__all__ = [
    "BUILT_IN",
    "FEATURES",
    "FLOOR",
    "caption_features",
    "check_confidence",
    "confidence_of",
    "feature_table",
    "fit_confidence",
]

FEATURES: Final = ("mean_logprob", "low_logprob", "min_logprob", "similarity")
FLOOR: Final = -12.0
"""Log-probabilities below this count as this (a probability of 6e-6)."""

_LOW_QUANTILE: Final = 0.2

BUILT_IN: Final = ConfidenceSpec(
    bias=1.0,
    weights={"mean_logprob": 1.5, "low_logprob": 0.75, "min_logprob": 0.25, "similarity": 1.5},
    fitted_on=0,
)
"""Used for a bundle without fitted coefficients: signs and sizes are plausible, nothing is measured."""


def caption_features(token_logprobs: Sequence[float], similarity: float | None) -> NDArray[np.float64]:
    """Return the features `(F,)` of one caption, in the order of `FEATURES`."""
    table = np.maximum(np.array(token_logprobs, dtype=np.float64), FLOOR)
    if not len(table):
        table = np.array([FLOOR])
    low = np.quantile(table, _LOW_QUANTILE)
    return np.array([table.mean(), low, table.min(), similarity or 0.0])


def feature_table(captions: Sequence[Caption]) -> NDArray[np.float64]:
    """Return the features `(N, F)` of device captions, for `fit_confidence`."""
    rows = [caption_features(c.token_logprobs[c.prompt_tokens :], c.similarity) for c in captions]
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES))


def confidence_of(features: NDArray[np.float64], spec: ConfidenceSpec | None) -> float:
    """Return the confidence in [0, 1] of one caption with `features (F,)`.

    `None` takes the built-in coefficients.
    """
    spec = spec or BUILT_IN
    by_name = dict(zip(FEATURES, features, strict=True))
    logit = spec.bias + sum(weight * by_name[name] for name, weight in spec.weights.items())
    return float(1 / (1 + np.exp(-np.clip(logit, -60.0, 60.0))))


def check_confidence(spec: ConfidenceSpec | None) -> None:
    """Check that every coefficient of `spec` belongs to a feature that this version computes.

    Raises:
        BundleSchemaError: an unknown feature name.
    """
    unknown = sorted(set(spec.weights) - set(FEATURES)) if spec else []
    if unknown:
        raise BundleSchemaError(
            "manifest.json, confidence.weights",
            expected=f"features out of {', '.join(FEATURES)}",
            found=", ".join(unknown),
            remedy="Upgrade pocketlens, or export the bundle with the installed version.",
        )


def fit_confidence(
    features: NDArray[np.floating], correct: NDArray[np.bool_], *, l2: float = 1.0, rounds: int = 50
) -> ConfidenceSpec:
    """Return the logistic coefficients that best predict `correct` from `features`.

    Newton's method on the log-likelihood with an L2 penalty on the coefficients of standardised
    features. The two targets are `(n1 + 1) / (n1 + 2)` and `1 / (n0 + 2)` instead of 1 and 0 (Platt
    1999, "Probabilistic Outputs for Support Vector Machines", section 2.2), so that even separable
    or one-sided data gives finite coefficients.

    Args:
        features: `(N, F)`, columns as in `FEATURES`, N at least 1. From the validation split.
        correct: `(N,)` booleans: the caption was right.
        l2: strength of the penalty, in pseudo-observations.
        rounds: upper limit of Newton steps; it usually takes fewer than ten.

    Raises:
        DataError: the shapes do not fit or a feature is not finite.
    """
    x, right = np.asarray(features, dtype=np.float64), np.asarray(correct, dtype=bool)
    fits = x.ndim == 2 and x.shape[1] == len(FEATURES) and right.shape == (len(x),) and len(x) > 0
    if not fits or not np.isfinite(x).all():
        raise DataError(
            "confidence features",
            expected=f"finite features (N, {len(FEATURES)}) and N booleans, N at least 1",
            found=f"features {x.shape} and labels {right.shape}",
            remedy="Caption the validation split again.",
        )
    positives = int(right.sum())
    negatives = len(x) - positives
    target = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # A constant feature tells nothing: its standardised column is 0 and its weight stays 0.
    scale = np.where(spread > 1e-9, spread, np.inf)
    design = np.column_stack([np.ones(len(x)), (x - mean) / scale])  # (N, 1 + F)
    penalty = np.diag([0.0, *[l2] * len(FEATURES)])
    beta = np.zeros(1 + len(FEATURES))
    for _ in range(rounds):
        probability = 1 / (1 + np.exp(-np.clip(design @ beta, -60.0, 60.0)))
        gradient = design.T @ (probability - target) + penalty @ beta
        curvature = design.T @ (design * (probability * (1 - probability) + 1e-9)[:, None]) + penalty
        move = np.linalg.solve(curvature, gradient)
        beta -= move
        if np.abs(move).max() < 1e-10:
            break
    weights = beta[1:] / scale
    return ConfidenceSpec(
        bias=float(beta[0] - weights @ mean),
        weights={name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)},
        fitted_on=len(x),
    )
