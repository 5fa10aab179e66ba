"""Figures with 95 % bootstrap intervals: retrieval, zero-shot classification, hallucinated objects.

Letters: `N` pictures, `M` texts, `D` embedding, `K` classes. All vectors have unit norm.

Shares (recall, accuracy, hallucination, missed) are in [0, 1]. Ties are broken against the judged
system: whatever scores within `TIE` of the right answer is ranked before it, and so is a score that
is not a number, so that a collapsed or broken model cannot look good.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.scenes.truth import mentioned_kinds

__all__ = [
    "DRAWS",
    "TIE",
    "Bootstrap",
    "Figure",
    "class_vector",
    "hallucination_figures",
    "recall_at_k",
    "recall_figures",
    "retrieval_ranks",
    "zero_shot_accuracy",
    "zero_shot_right",
]

DRAWS: Final = 1000
"""Bootstrap draws behind each interval."""

TIE: Final = 1e-6
"""Cosines that differ by no more are tied: a float32 product of two equal rows differs by about that."""

_RANKS: Final = (1, 5, 10)
# Rows of a similarity matrix held at a time: 5,000 pictures with five captions each take 25 MB.
_ROWS: Final = 256


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured number.

    Attributes:
        value: over all pictures.
        low, high: the 2.5 % and 97.5 % quantiles of its bootstrap distribution.
        samples: pictures that the value rests on.
    """

    value: float
    low: float
    high: float
    samples: int


class Bootstrap:
    """Percentile bootstrap over pictures (Efron 1979), the same draws for every figure.

    Pictures are drawn, not captions: what belongs to one picture stays together.

    Args:
        count: N, at least 1.
        seed: of the draws.

    Attributes:
        times: `(draws, N)` float64, how often each picture was drawn.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        rng = np.random.default_rng(seed)
        times = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
        self.times: NDArray[np.float64] = times.astype(np.float64)
        self._kept: list[tuple[Figure, NDArray[np.float64]]] = []

    def sums(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return `(draws, ...)`: the sum of `values (N, ...)` over the pictures of each draw."""
        result: NDArray[np.float64] = self.times @ values.astype(np.float64)
        return result

    def ratio(self, parts: NDArray[np.floating], wholes: NDArray[np.floating]) -> Figure:
        """Return the figure `sum(parts) / sum(wholes)`, both `(N,)`.

        Draws without any whole are left out. With none at all nothing is known: the value is 0,
        the interval 0 to 1 and `samples` 0.
        """
        if not wholes.any():
            return self._unknown(0.0, 1.0)
        drawn = self.sums(np.stack([parts, wholes], axis=1))
        shares = np.full(len(drawn), np.nan)
        np.divide(drawn[:, 0], drawn[:, 1], out=shares, where=drawn[:, 1] > 0)
        value = float(parts.sum(dtype=np.float64) / wholes.sum(dtype=np.float64))
        return self.figure(value, shares, samples=int(np.count_nonzero(wholes)))

    def mean(self, values: NDArray[np.floating]) -> Figure:
        """Return the figure of the mean of `values (N,)`."""
        return self.ratio(values, np.ones(self.count))

    def figure(self, value: float, drawn: NDArray[np.float64], *, samples: int) -> Figure:
        """Return `value` with the interval that the draws `drawn (draws,)` of it span; NaN are left out."""
        known = drawn[~np.isnan(drawn)]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (value, value)
        result = Figure(value=float(value), low=float(low), high=float(high), samples=samples)
        self._kept.append((result, drawn))
        return result

    def _unknown(self, low: float, high: float) -> Figure:
        result = Figure(value=0.0, low=low, high=high, samples=0)
        self._kept.append((result, np.full(len(self.times), np.nan)))
        return result

    def linear(self, value: float, changes: NDArray[np.floating], *, samples: int) -> Figure:
        """Return `value` with the interval of its linear approximation.

        For what drawing with replacement would bias, such as the number of distinct words: a draw sees only 63 % of
        the pictures. Each picture's influence is taken from leaving it out (Efron and Tibshirani 1993, section 22.3).

        Args:
            value: over all pictures.
            changes: `(N,)`, by how much `value` falls when a picture is left out.
            samples: pictures that the value rests on.
        """
        influence = (self.count - 1) / self.count * np.asarray(changes, dtype=np.float64)
        return self.figure(value, value + (self.times - 1.0) @ influence, samples=samples)

    def drawn(self, figure: Figure) -> NDArray[np.float64]:
        """Return the draws `(draws,)` behind a figure that this bootstrap made; NaN where a draw had no whole.

        Raises:
            KeyError: it is another's.
        """
        for known, drawn in self._kept:
            if known is figure:
                return drawn
        raise KeyError("the figure was made by another bootstrap")

    def difference(self, a: Figure, b: Figure) -> Figure:
        """Return `a - b` with the interval of the paired draws: both saw the same pictures in each draw.

        With no samples in one of them nothing is known: the value is 0, the interval -1 to 1 and `samples` 0.
        """
        if not a.samples or not b.samples:
            return self._unknown(-1.0, 1.0)
        drawn = self.drawn(a) - self.drawn(b)
        return self.figure(a.value - b.value, drawn, samples=min(a.samples, b.samples))

    def loss(self, after: Figure, before: Figure) -> Figure:
        """Return the relative loss `1 - after / before` from paired draws.

        Where `before` is 0 nothing is known: the value is 0, the interval 0 to 1 and `samples` 0.
        """
        if before.value == 0.0 or not after.samples:
            return self._unknown(0.0, 1.0)
        base, rest = self.drawn(before), self.drawn(after)
        ratio = np.full(len(base), np.nan)
        np.divide(rest, base, out=ratio, where=base > 0)
        return self.figure(1.0 - after.value / before.value, 1.0 - ratio, samples=after.samples)


def retrieval_ranks(
    images: NDArray[np.float32], texts: NDArray[np.float32], owners: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where the right answers stand, counted from 1.

    Args:
        images: `(N, D)`.
        texts: `(M, D)`.
        owners: `(M,)`, the picture that each text describes.

    Returns:
        `(N,)` rank of each picture's best caption among all texts, and `(M,)` rank of each text's
        picture among all pictures.
    """
    own = np.nan_to_num(np.einsum("md,md->m", images[owners], texts), nan=-np.inf)
    best = np.full(len(images), -np.inf, dtype=own.dtype)
    np.maximum.at(best, owners, own)
    image_ranks = np.empty(len(images), dtype=np.intp)
    for rows in _blocks(len(images)):
        # "not clearly behind" instead of "ahead": true for ties and for what is not a number
        ahead = ~(images[rows] @ texts.T < best[rows, None] - TIE)
        ahead &= owners[None, :] != np.arange(rows.start, rows.stop)[:, None]
        image_ranks[rows] = 1 + ahead.sum(axis=1)
    text_ranks = np.empty(len(texts), dtype=np.intp)
    for rows in _blocks(len(texts)):
        ahead = ~(texts[rows] @ images.T < own[rows, None] - TIE)
        ahead[np.arange(len(ahead)), owners[rows]] = False
        text_ranks[rows] = 1 + ahead.sum(axis=1)
    return image_ranks, text_ranks


def recall_at_k(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    owners: NDArray[np.intp],
    *,
    bootstrap: Bootstrap,
) -> dict[str, Figure]:
    """Return `r1_i2t`, `r5_i2t`, `r10_i2t` and the same for `t2i`; arguments as in `retrieval_ranks`.

    The protocol of Karpathy and Fei-Fei 2015, section 4.1: a picture is a hit if any of its
    captions is among the first k texts; each caption is a query of its own for pictures.
    """
    return recall_figures(*retrieval_ranks(images, texts, owners), owners, bootstrap=bootstrap)


def recall_figures(
    image_ranks: NDArray[np.intp], text_ranks: NDArray[np.intp], owners: NDArray[np.intp], *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return the figures of `recall_at_k` from what `retrieval_ranks` returned."""
    queries = np.bincount(owners, minlength=len(image_ranks)).astype(np.float64)
    figures = {f"r{k}_i2t": bootstrap.mean((image_ranks <= k).astype(np.float64)) for k in _RANKS}
    for k in _RANKS:
        hits = np.bincount(owners[text_ranks <= k], minlength=len(image_ranks)).astype(np.float64)
        figures[f"r{k}_t2i"] = bootstrap.ratio(hits, queries)
    return figures


def class_vector(prompts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the class `(D,)` of its `prompts (P, D)`: their mean, renormalised.

    A prompt ensemble over the embedding space (Radford et al. 2021, section 3.1.4).
    """
    mean = (prompts / _norm(prompts)).mean(axis=0)
    vector: NDArray[np.float32] = (mean / _norm(mean)).astype(np.float32)
    return vector


def zero_shot_accuracy(
    images: NDArray[np.float32],
    classes: NDArray[np.float32],
    labels: NDArray[np.intp],
    *,
    bootstrap: Bootstrap,
) -> Figure:
    """Return the share of pictures whose own class is the closest one.

    Args:
        images: `(N, D)`.
        classes: `(K, D)`, from `class_vector`.
        labels: `(N,)`, the class of each picture; -1 leaves a picture out, e.g. one of two kinds.
        bootstrap: of N pictures.
    """
    right = zero_shot_right(images, classes, labels)
    return bootstrap.ratio(right.astype(np.float64), (labels >= 0).astype(np.float64))


def zero_shot_right(
    images: NDArray[np.float32], classes: NDArray[np.float32], labels: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Return `(N,)`: a picture's own class is the closest one; `False` for pictures without a label."""
    judged = labels >= 0
    right = np.zeros(len(images), dtype=np.bool_)
    scores = images[judged] @ classes.T  # (judged, K)
    rows, own = np.arange(len(scores)), labels[judged]
    ahead = ~(scores < scores[rows, own][:, None] - TIE)
    ahead[rows, own] = False
    right[judged] = ~ahead.any(axis=1)
    return right


def hallucination_figures(
    captions: Sequence[str],
    truths: Sequence[Collection[str]],
    *,
    bootstrap: Bootstrap,
    mentioned: Callable[[str], frozenset[str]] = mentioned_kinds,
) -> dict[str, Figure]:
    """Return how much `captions` invent and overlook; `truths` are the kinds that each picture shows.

    `mentioned` finds the kinds that a text names; by default those of the built-in scenes. A kind counts
    once per caption, by whatever synonym it is named.

    - `hallucination`: kinds named but not shown / kinds named: CHAIR_i of Rohrbach et al. 2018.
    - `hallucination_captions`: share of captions with at least one such kind: CHAIR_s.
    - `missed`: kinds shown but not named / kinds shown. A caption that names nothing invents nothing.
    """
    found = [mentioned(text) for text in captions]
    named = np.array([len(kinds) for kinds in found], dtype=np.float64)
    invented = np.array([len(kinds - frozenset(truth)) for kinds, truth in zip(found, truths, strict=True)])
    shown = np.array([len(set(kinds)) for kinds in truths], dtype=np.float64)
    return {
        "hallucination": bootstrap.ratio(invented, named),
        "hallucination_captions": bootstrap.mean((invented > 0).astype(np.float64)),
        "missed": bootstrap.ratio(shown - (named - invented), shown),
    }


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, min(start + _ROWS, count))


def _norm(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.maximum(length, np.finfo(np.float32).tiny)
