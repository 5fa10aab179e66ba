"""CIDEr-D of single captions against fixed document frequencies: what self-critical training is rewarded with.

The score is that of `pocketlens.distill.evaluation.captions.cider_scores` (Vedantam et al. 2015, section 4), except
that the rarity of an n-gram is counted once, over all training captions, and not over the pictures at hand; and that
the end of a caption counts as a word. Without it nothing is lost by a caption that breaks off ("a cat on a"), and
training finds that out (Hu et al. 2023, SacréEOS).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.evaluation.captions import tokenize

__all__ = ["CiderReward"]

_ORDERS: Final = 4
_SIGMA: Final = 6.0
_SCALE: Final = 10.0
_END: Final = "."  # no word of `tokenize` looks like it

_Gram = tuple[str, ...]


class _Vector(NamedTuple):
    """A caption: weights of its n-grams and their norm for each order, and its number of words."""

    weights: list[dict[_Gram, float]]
    norms: list[float]
    length: int


class CiderReward:
    """Scores captions against references.

    Args:
        corpus: the references of every picture, for the document frequencies; kept as counts alone.
        with_end: whether the end of a caption is a word.
    """

    def __init__(self, corpus: Iterable[Sequence[str]], *, with_end: bool = True) -> None:
        self._with_end = with_end
        self._frequency: Counter[_Gram] = Counter()
        pictures = 0
        for texts in corpus:
            self._frequency.update({gram for text in texts for gram in _grams(self._words(text, True))})
            pictures += 1
        self._log_pictures = math.log(max(pictures, 1))

    def score(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], ended: Sequence[bool] | None = None
    ) -> NDArray[np.float64]:
        """Return `(N,)` in [0, 10].

        Args:
            captions: N captions.
            references: of each, at least one.
            ended: whether each caption came to its end; by default all did.
        """
        known: dict[int, list[_Vector]] = {}
        scores = np.zeros(len(captions))
        for index, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            if id(texts) not in known:  # samples of one picture come with one list of references
                known[id(texts)] = [self._vector(self._words(text, True)) for text in texts]
            vector = self._vector(self._words(caption, ended is None or ended[index]))
            scores[index] = _SCALE * np.mean([_similarity(vector, other) for other in known[id(texts)]])
        return scores

    def _words(self, text: str, ended: bool) -> list[str]:
        words = tokenize(text).split()
        return [*words, _END] if self._with_end and ended else words

    def _vector(self, words: list[str]) -> _Vector:
        weights: list[dict[_Gram, float]] = [{} for _ in range(_ORDERS)]
        for gram, count in Counter(_grams(words)).items():
            rarity = self._log_pictures - math.log(max(1.0, self._frequency.get(gram, 0)))
            weights[len(gram) - 1][gram] = count * rarity
        norms = [math.sqrt(sum(weight**2 for weight in one.values())) for one in weights]
        return _Vector(weights, norms, max(len(words) - 1, 0))


def _grams(words: Sequence[str]) -> Iterable[_Gram]:
    for order in range(1, _ORDERS + 1):
        for start in range(len(words) - order + 1):
            yield tuple(words[start : start + order])


def _similarity(one: _Vector, other: _Vector) -> float:
    """Return the mean over n of the clipped cosines, with the penalty for another length (CIDEr-D)."""
    total = 0.0
    for mine, theirs, a, b in zip(one.weights, other.weights, one.norms, other.norms, strict=True):
        product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        if a and b:
            product /= a * b
        total += product
    return total / _ORDERS * math.exp(-((one.length - other.length) ** 2) / (2 * _SIGMA**2))
