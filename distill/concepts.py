"""Which words a picture's captions agree on: labels that a picture tower can learn from directly.

A caption loss reaches the picture tower through the decoder, and most of what it asks for is wording. So the
tower is also asked, from its pooled features, which words stand in the captions: words as labels of a picture,
as in Fang et al. 2015 (From Captions to Visual Concepts and Back, section 3) and Joulin et al. 2016 (Learning
Visual Features from Large Weakly Supervised Data).

Most words are wording (`there`, `photo`). What a picture shows is what its captions agree on, and that can be
counted: the *lift* of a word is how much more often two captions of one picture share it than two captions of
different pictures would. It is 1 for a word that is strewn at random and large for the name of a thing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Concepts", "concept_loss", "find_concepts"]

_WORD = re.compile(r"\w+")
_MIN_LIFT = 3.0
_MIN_PICTURES = 0.005
_POWER = 2.0


class Concepts(NamedTuple):
    """Words as labels.

    Attributes:
        words: the K words, by frequency.
        weights: `(K,)` float32, mean 1: a rarer, better agreed word counts more.
    """

    words: tuple[str, ...]
    weights: NDArray[np.float32]

    def labels(self, captions: "Sequence[Sequence[str]] | NDArray[np.intp]") -> NDArray[np.bool_]:
        """Return `(B, K)` bool: does any caption of the picture hold the word? Without words only B is looked at."""
        labels = np.zeros((len(captions), len(self.words)), dtype=np.bool_)
        if not self.words:
            return labels
        column = {word: index for index, word in enumerate(self.words)}
        for row, texts in enumerate(captions):
            said = set[str]().union(*(_WORD.findall(text.lower()) for text in texts))
            labels[row, [column[word] for word in said if word in column]] = True
        return labels


def find_concepts(captions: Sequence[Sequence[str]]) -> Concepts:
    """Return the words that the captions of each picture agree on.

    A word counts that stands in the captions of at least one picture in two hundred and has a lift of 3 or
    more. Pictures with a single caption say nothing about agreement: without any picture that has two, there
    are no concepts.

    Args:
        captions: of each of N pictures, any number.
    """
    bags = [[set(_WORD.findall(text.lower())) for text in texts] for texts in captions]
    pictures = Counter(word for bag in bags for word in set[str]().union(*bag))
    lift = _lift(bags)
    least = max(2.0, _MIN_PICTURES * len(bags))
    words = [word for word, count in pictures.most_common() if count >= least and lift.get(word, 0.0) >= _MIN_LIFT]
    weights = np.array([lift[word] ** _POWER for word in words], dtype=np.float32)
    return Concepts(tuple(words), weights / weights.mean() if words else weights)


def concept_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the binary cross-entropy of `logits`, `labels (B, K)`: weighted, summed over K, averaged over B."""
    terms = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return (terms * weights).sum(dim=1).mean()


def _lift(bags: Sequence[Sequence[set[str]]]) -> dict[str, float]:
    """Return P(word in both of two captions of a picture) / P(word in a caption)^2 for each word."""
    single: Counter[str] = Counter()
    shared: Counter[str] = Counter()
    captions = pairs = 0
    for bag in bags:
        if len(bag) < 2:
            continue
        counts = Counter(word for words in bag for word in words)
        captions += len(bag)
        pairs += len(bag) * (len(bag) - 1)
        for word, count in counts.items():
            single[word] += count
            shared[word] += count * (count - 1)
    return {word: (shared[word] / pairs) / (count / captions) ** 2 for word, count in single.items()}
