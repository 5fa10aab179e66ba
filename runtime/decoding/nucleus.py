"""Nucleus sampling: draws from the most probable tokens that together reach a probability of p.

Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.

Numbers come from a counter-based generator (Philox 4x64 with 10 rounds, Salmon et al. 2011, "Parallel Random Numbers:
As Easy as 1, 2, 3"): the t-th draw of the c-th caption of a picture depends on seed, picture, c and t alone, not on
what else is in the batch and not on the machine. What is left to differ between machines is the rounding of logits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.decoding.distribution import Distribution
from pocketlens.runtime.decoding.repeats import repeating
from pocketlens.runtime.decoding.sequence import Hypothesis, Limits, Step
from pocketlens.runtime.decoding.stepping import Choice, finished, grow

__all__ = ["from_nucleus", "nucleus", "uniforms"]


def uniforms(seed: int, key: int, copy: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for one caption.

    Args:
        seed: the caller's, in [0, 2**64).
        key: of the picture, in [0, 2**64).
        copy: which of the picture's captions.
        count: the first so many draws.
    """
    generator = np.random.Philox(key=np.array([seed, key], dtype=np.uint64), counter=[0, copy, 0, 0])
    # 53 bits, as many as a double holds.
    bits: NDArray[np.uint64] = generator.random_raw(count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def from_nucleus(
    draws: Sequence[NDArray[np.float64]], *, top_p: float, temperature: float, no_repeat_ngram: int = 0
) -> Choice:
    """Return the choice of nucleus sampling.

    Args:
        draws: numbers in [0, 1) for each row, one for each token of its caption, prompt included.
        top_p: p, in (0, 1]; 1 draws from the whole vocabulary.
        temperature: logits are divided by it; above 0.
        no_repeat_ngram: see `greedy`.
    """

    def choose(distribution: Distribution, rows: list[int], captions: list[Hypothesis]) -> NDArray[np.int32]:
        banned = [repeating(caption.token_ids, no_repeat_ngram) for caption in captions]
        table = distribution.probabilities(temperature, banned)
        tokens = [
            _drawn(probabilities, top_p, draws[row][len(caption.token_ids)])
            for probabilities, row, caption in zip(table, rows, captions, strict=True)
        ]
        return np.array(tokens, dtype=np.int32)

    return choose


def nucleus(
    step: Step,
    cache: Any,
    limits: Limits,
    *,
    keys: Sequence[int],
    seed: int,
    top_p: float,
    temperature: float = 1.0,
    copies: int = 1,
    no_repeat_ngram: int = 0,
) -> list[list[Hypothesis]]:
    """Return `copies` captions of each picture, drawn independently.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        keys: what the draws of each picture depend on, `B` numbers in [0, 2**64).
        seed: the caller's, in [0, 2**64).
        top_p: p, in (0, 1].
        temperature: logits are divided by it; above 0.
        copies: captions per picture, at least 1; two of them may be equal.
        no_repeat_ngram: see `greedy`.

    Returns:
        `B` lists in the order of the cache.
    """
    draws = [uniforms(seed, key, copy, limits.max_tokens) for key in keys for copy in range(copies)]
    choose = from_nucleus(draws, top_p=top_p, temperature=temperature, no_repeat_ngram=no_repeat_ngram)
    captions = finished(grow(step, cache, limits, choose, copies=copies))
    return [captions[first : first + copies] for first in range(0, len(captions), copies)]


def _drawn(probabilities: NDArray[np.float64], top_p: float, draw: float) -> int:
    """Return the token at `draw` of the way through the nucleus, most probable token first.

    The nucleus is the fewest tokens that reach `top_p`; of equal ones the smaller ids. It has at least one.
    """
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(probabilities[order])
    size = min(int(np.searchsorted(reached, top_p * reached[-1])) + 1, len(order))
    place = int(np.searchsorted(reached[:size], draw * reached[size - 1], side="right"))
    return int(order[min(place, size - 1)])
