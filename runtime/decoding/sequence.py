"""What every search shares: a decode step, where captions begin and end, and what comes out.

Letters: `B` pictures, `R` rows of a decode call (live hypotheses of all pictures), `N` vocabulary.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["LENGTH_PENALTY", "Hypothesis", "Limits", "Step", "length_divisor"]

Step = Callable[[NDArray[np.int32], NDArray[np.int32], Any], tuple[NDArray[np.float32], Any]]
"""One decode call: `token (R,)`, `position (R,)` int32 and a cache of `R` rows give logits `(R, N)` float32 for the
next token, and the cache with this token in it.

A cache is a numpy array whose axis 0 is `R`, or whatever else has a length and gives `cache[rows]`. It may be
written to by the step: the searches never use the cache that they handed in again.
"""

LENGTH_PENALTY: Final = 0.6
"""Alpha of the length normalisation of scores; 0 ranks by the plain sum of log-probabilities."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where decoding begins and where it ends.

    Attributes:
        bos_id: the token that is fed first, at position `start`.
        eos_id: the token that ends a caption.
        start: the first text position: the number of visual tokens.
        max_tokens: the most ids that one caption may have, prompt and end token included; at least 1.
        prompt: ids that every caption begins with; fewer than `max_tokens`.
    """

    bos_id: int
    eos_id: int
    start: int
    max_tokens: int
    prompt: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, found {self.max_tokens}")
        if len(self.prompt) >= self.max_tokens:
            raise ValueError(
                f"prompt: expected fewer than the {self.max_tokens} tokens that a caption may have, "
                f"found {len(self.prompt)}"
            )


class Hypothesis(msgspec.Struct, frozen=True):
    """A decoded caption: its ids (prompt included, and the end token where reached) and what each one cost.

    Attributes:
        token_ids: the ids.
        logprobs: natural log-probability of each id under the model itself: before temperature, truncation and
            banned tokens.
        entropies: entropy in nats of the distribution that each id was taken from, likewise the model's own.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...] = ()

    @property
    def logprob(self) -> float:
        """Log-probability of the whole sequence."""
        return float(sum(self.logprobs))

    def score(self, length_penalty: float) -> float:
        """Length-normalised score: `logprob / ((5 + length) / 6) ** alpha`.

        Source: Wu et al. 2016, "Google's Neural Machine Translation System", equation 14, without
        its coverage term.
        """
        return self.logprob / length_divisor(len(self.token_ids), length_penalty)


def length_divisor(length: int, length_penalty: float) -> float:
    """Return `((5 + length) / 6) ** length_penalty`; see `Hypothesis.score`."""
    divisor: float = ((5 + length) / 6) ** length_penalty
    return divisor
