"""Does the confidence know what is right: expected calibration error, selective risk, its area.

Letters: `N` captions.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.evaluation.metrics import Bootstrap, Figure

__all__ = ["BINS", "RiskPoint", "calibration_error", "calibration_figures", "risk_area", "risk_coverage"]

BINS: Final = 10
"""Bins of equal width over [0, 1]."""


class RiskPoint(msgspec.Struct, frozen=True):
    """Of the surest captions: which share of all they are, and which share of them is wrong.

    Attributes:
        coverage: in (0, 1].
        risk: in [0, 1].
        confidence: of the least sure one among them.
    """

    coverage: float
    risk: float
    confidence: float


def calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the expected calibration error of each draw `(draws,)` (Guo et al. 2017, equation 3).

    Args:
        confidence: `(N,)` in [0, 1].
        correct: `(N,)`.
        times: `(draws, N)`, how often each caption counts.
    """
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    gap = np.zeros((len(confidence), BINS))
    gap[np.arange(len(bins)), bins] = correct - confidence
    error: NDArray[np.float64] = np.abs(times @ gap).sum(axis=1) / times.sum(axis=1)
    return error


def risk_area(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the area under the risk-coverage curve of each draw `(draws,)` (Geifman and El-Yaniv 2017, section 2).

    The mean, over all captions, of the share of wrong ones among those that are at least as sure. Captions of the same
    confidence are accepted together, so that their order does not matter. Arguments as in `calibration_error`.
    """
    order, ends = _groups(confidence)
    weights = times[:, order]
    accepted = np.cumsum(weights, axis=1)[:, ends]
    wrong = np.cumsum(weights * ~correct[order], axis=1)[:, ends]
    risk = np.zeros(accepted.shape)
    np.divide(wrong, accepted, out=risk, where=accepted > 0)
    own = np.diff(accepted, axis=1, prepend=0.0)
    area: NDArray[np.float64] = (own * risk).sum(axis=1) / accepted[:, -1]
    return area


def risk_coverage(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[RiskPoint]:
    """Return the risk-coverage curve, one point a distinct confidence, the surest first."""
    order, ends = _groups(confidence)
    wrong = np.cumsum(~correct[order])[ends]
    accepted = ends + 1
    return [
        RiskPoint(float(n / len(order)), float(w / n), float(confidence[order[end]]))
        for n, w, end in zip(accepted, wrong, ends, strict=True)
    ]


def calibration_figures(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return `ece`, `aurc` and `right`, the share of right captions: 1 minus the risk at full coverage.

    Arguments as in `calibration_error`. A draw holds fewer distinct captions than the whole, and `ece` adds up gaps of
    either sign: its draws lie above its value where bins are nearly empty.
    """
    once, count = np.ones((1, len(confidence))), len(confidence)
    figures = {
        name: bootstrap.figure(
            float(measure(confidence, correct, once)[0]),
            measure(confidence, correct, bootstrap.times),
            samples=count,
        )
        for name, measure in (("ece", calibration_error), ("aurc", risk_area))
    }
    return figures | {"right": bootstrap.mean(correct.astype(np.float64))}


def _groups(confidence: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return captions, the surest first, and where in that order each group of equal confidence ends."""
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return order, ends
