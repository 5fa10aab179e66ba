"""How varied captions are: words in use, wordings that repeat, words said twice in a sentence.

Automatic scores reward safe, generic captions; these figures show them.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.evaluation.captions import tokenize
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure

__all__ = ["vocabulary_figures"]


def vocabulary_figures(captions: Sequence[str], *, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Return figures of `captions`, one a picture, cut into words by `captions.tokenize`.

    - `vocabulary`: distinct words in all captions.
    - `distinct_captions`: distinct captions / captions.
    - `distinct2`: distinct pairs of neighbouring words / such pairs (Li et al. 2016, "A Diversity-Promoting
      Objective Function", section 5.3). Falls with the number of captions: compare sets of the same size only.
    - `repeated_captions`: share of pictures whose caption another picture got too, word for word.
    - `repeated_words`: words of a caption that stood in it before / words: "a dog and a dog" has 2 of 5.
    - `empty_captions`: share of captions without a word.

    Intervals of the first three are linear approximations: see `Bootstrap.linear`.
    """
    words = [tuple(tokenize(text).split()) for text in captions]
    pairs = [tuple(pairwise(each)) for each in words]
    count = len(captions)
    distinct, lost_words = _distinct(words)
    wordings, lost_wordings = _distinct([(each,) for each in words])
    bigrams, lost_bigrams = _distinct(pairs)
    sizes = np.array([len(each) for each in pairs], dtype=np.float64)
    total = sizes.sum()
    share = bigrams / total if total else 0.0
    rest = np.maximum(total - sizes, 1.0)
    often = Counter(words)
    lengths = np.array([len(each) for each in words], dtype=np.float64)
    again = lengths - np.array([len(set(each)) for each in words])
    return {
        "vocabulary": bootstrap.linear(float(distinct), lost_words, samples=count),
        "distinct_captions": bootstrap.linear(
            wordings / count, wordings / count - (wordings - lost_wordings) / max(count - 1, 1), samples=count
        ),
        "distinct2": bootstrap.linear(share, share - (bigrams - lost_bigrams) / rest, samples=count),
        "repeated_captions": bootstrap.mean(np.array([often[each] > 1 for each in words], dtype=np.float64)),
        "repeated_words": bootstrap.ratio(again, lengths),
        "empty_captions": bootstrap.mean((lengths == 0).astype(np.float64)),
    }


def _distinct(groups: Sequence[Iterable[Hashable]]) -> tuple[int, NDArray[np.float64]]:
    """Return how many distinct items all groups have, and `(N,)` how many are in that group alone."""
    holders = Counter(item for group in groups for item in set(group))
    alone = [sum(holders[item] == 1 for item in set(group)) for group in groups]
    return len(holders), np.array(alone, dtype=np.float64)
