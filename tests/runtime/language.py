"""A language small enough to enumerate, as a decode step.

Its cache is the row of tokens that were fed so far, so that a search which mixes up rows or positions gets other
logits.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.decoding import Limits

__all__ = ["BOS", "EOS", "LIMITS", "TOKENS", "VOCAB", "Language", "empty_cache", "next_logits", "with_prompt"]

VOCAB: Final = 4
BOS: Final = 1
EOS: Final = 2
TOKENS: Final = 4
LIMITS: Final = Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=TOKENS)


def with_prompt(limits: Limits, prompt: tuple[int, ...]) -> Limits:
    """Return `limits` with another prompt, checked again."""
    return Limits(**(msgspec.structs.asdict(limits) | {"prompt": prompt}))


def empty_cache(pictures: int, tokens: int = TOKENS) -> NDArray[np.int64]:
    """Return caches `(B, 1 + tokens)`: the picture's number, then room for the tokens."""
    cache = np.full((pictures, 1 + tokens), -1)
    cache[:, 0] = np.arange(pictures)
    return cache


def next_logits(history: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits that depend on the picture and on every token before."""
    seed = [int(value) + 1 for value in history]
    return np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)


class Language:
    """A decode step that also counts the rows that it was asked for."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(
        self, token: NDArray[np.int32], position: NDArray[np.int32], cache: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the logits after `token` and the cache with it."""
        cache = cache.copy()
        cache[np.arange(len(cache)), position] = token
        self.rows.append(len(token))
        return np.array([next_logits(row) for row in cache]), cache
