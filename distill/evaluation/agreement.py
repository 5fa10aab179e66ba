"""How far raters agree: Krippendorff's alpha.

Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011: any number of raters, missing ratings allowed.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Level", "krippendorff_alpha"]

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: NDArray[np.float64], *, level: Level) -> float:
    """Return alpha: 1 for perfect agreement, 0 for that of chance, below 0 for less.

    NaN where nothing can be said: no unit has two ratings, or all ratings are equal.

    Args:
        ratings: `(raters, units)`, NaN where a rater gave none.
        level: what a difference of two ratings means: another name, another rank, or another amount.
    """
    known = ~np.isnan(ratings)
    pairable = known.sum(axis=0) >= 2
    values = np.unique(ratings[:, pairable][known[:, pairable]])
    if len(values) < 2:
        return float("nan")
    # (units, values): how often each unit got each value
    counts = np.stack([(ratings[:, pairable] == value).sum(axis=0) for value in values], axis=1).astype(np.float64)
    sizes = counts.sum(axis=1)
    weighted = counts / (sizes - 1)[:, None]
    coincidences = weighted.T @ counts - np.diag(weighted.sum(axis=0))
    totals = coincidences.sum(axis=1)
    distance = _squared_distance(values, totals, level)
    observed = (coincidences * distance).sum()
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1.0 - observed / expected)


def _squared_distance(values: NDArray[np.float64], totals: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Return `(V, V)`: the squared difference functions of section D of the paper."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # Ordinal: ratings between two ranks, the ranks themselves counted half; the same as distances of mid-ranks.
    place = values if level == "interval" else np.cumsum(totals) - totals / 2
    squared: NDArray[np.float64] = np.subtract.outer(place, place) ** 2
    return squared
