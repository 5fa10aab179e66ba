"""Greedy decoding: the most probable token at every step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.decoding.distribution import Distribution
from pocketlens.runtime.decoding.repeats import repeating
from pocketlens.runtime.decoding.sequence import Hypothesis, Limits, Step
from pocketlens.runtime.decoding.stepping import Choice, finished, grow

__all__ = ["greedy", "most_probable"]


def most_probable(no_repeat_ngram: int = 0) -> Choice:
    """Return the choice of the most probable token that repeats no n-gram of this size; ties go to the smaller id."""

    def choose(distribution: Distribution, rows: list[int], captions: list[Hypothesis]) -> NDArray[np.int32]:
        banned = [repeating(caption.token_ids, no_repeat_ngram) for caption in captions]
        return distribution.best(banned)

    return choose


def greedy(step: Step, cache: Any, limits: Limits, *, no_repeat_ngram: int = 0) -> list[Hypothesis]:
    """Return the caption of each picture that takes the most probable token at every step.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        no_repeat_ngram: no n-gram of this size stands twice in a caption; 0 allows all.

    Returns:
        `B` hypotheses in the order of the cache.
    """
    return finished(grow(step, cache, limits, most_probable(no_repeat_ngram)))
