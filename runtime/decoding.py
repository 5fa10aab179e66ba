"""From a filled cache to token ids: greedy and beam search with a static KV cache.

Letters: `B` pictures, `R` rows of a decode call (live hypotheses of all pictures), `N` vocabulary.
A step takes `token (R,)` int32, `position (R,)` int32 and a cache whose axis 0 is `R`; it returns
logits `(R, N)` float32 for the next token and the cache with this token in it.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError

__all__ = ["LENGTH_PENALTY", "Hypothesis", "Limits", "Step", "beam_search", "greedy", "log_softmax"]

Step = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[Any]], tuple[NDArray[np.float32], NDArray[Any]]]

LENGTH_PENALTY: Final = 0.6
"""Alpha of the length normalisation in beam search; 0 ranks by the plain sum of log-probabilities."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where decoding begins and where it ends.

    Attributes:
        bos_id: the token that is fed first, at position `start`.
        eos_id: the token that ends a caption.
        start: the first text position: the number of visual tokens.
        max_tokens: the most ids that one caption may have, the end token included; at least 1.
    """

    bos_id: int
    eos_id: int
    start: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, found {self.max_tokens}")


class Hypothesis(msgspec.Struct, frozen=True):
    """A decoded caption: its ids (the end token included where reached) and what each one cost.

    `logprobs` are natural log-probabilities, one per id.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Log-probability of the whole sequence."""
        return float(sum(self.logprobs))

    def score(self, length_penalty: float) -> float:
        """Length-normalised score: `logprob / ((5 + length) / 6) ** alpha`.

        Source: Wu et al. 2016, "Google's Neural Machine Translation System", equation 14, without
        its coverage term.
        """
        penalty: float = ((5 + len(self.token_ids)) / 6) ** length_penalty
        return self.logprob / penalty


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return natural log-probabilities over the last axis, in float64.

    Raises:
        EngineError: a logit is not a finite number.
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise EngineError(
            "caption_decode",
            expected="finite logits",
            found="NaN or infinity",
            remedy="The graph is numerically broken: export the bundle again or choose another precision.",
        )
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def greedy(step: Step, cache: NDArray[Any], limits: Limits) -> list[Hypothesis]:
    """Return the caption of each picture that takes the most probable token at every step.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.

    Returns:
        `B` hypotheses in the order of the cache.
    """
    ids: list[list[int]] = [[] for _ in range(len(cache))]
    logprobs: list[list[float]] = [[] for _ in range(len(cache))]
    alive = np.arange(len(cache))  # (R,) the picture that each row belongs to
    token = np.full(len(cache), limits.bos_id, dtype=np.int32)
    for offset in range(limits.max_tokens):
        if not len(alive):
            break
        table, cache = _advance(step, token, limits.start + offset, cache)
        token = table.argmax(axis=-1).astype(np.int32)
        for row, picture in enumerate(alive):
            ids[picture].append(int(token[row]))
            logprobs[picture].append(float(table[row, token[row]]))
        going = token != limits.eos_id
        if not going.all():  # finished rows leave the batch, so that nobody pays for them
            alive, token, cache = alive[going], token[going], cache[going]
    return [Hypothesis(tuple(i), tuple(p)) for i, p in zip(ids, logprobs, strict=True)]


def beam_search(
    step: Step,
    cache: NDArray[Any],
    limits: Limits,
    *,
    beam: int,
    length_penalty: float = LENGTH_PENALTY,
) -> list[Hypothesis]:
    """Return the best caption of each picture that a beam of `beam` hypotheses finds.

    All hypotheses of all pictures go through one decode call per step. At each step a picture keeps
    its most probable continuations; one that ends leaves and narrows the beam by one, so a beam of 1
    is exactly `greedy`. The winner is the hypothesis with the best `Hypothesis.score`.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        beam: hypotheses per picture, at least 1.
        length_penalty: alpha of the length normalisation.

    Returns:
        `B` hypotheses in the order of the cache.
    """
    if beam < 1:
        raise ValueError(f"beam: expected at least 1, found {beam}")
    live: list[list[Hypothesis]] = [[Hypothesis((), ())] for _ in range(len(cache))]
    ended: list[list[Hypothesis]] = [[] for _ in range(len(cache))]
    token = np.full(len(cache), limits.bos_id, dtype=np.int32)
    for offset in range(limits.max_tokens):
        if not len(token):
            break
        table, cache = _advance(step, token, limits.start + offset, cache)
        parents: list[int] = []
        first = 0
        for picture, hypotheses in enumerate(live):
            rows = table[first : first + len(hypotheses)]
            kept = []
            for parent, index in _best(rows, hypotheses, beam - len(ended[picture])):
                grown = _grow(hypotheses[parent], index, float(rows[parent, index]))
                if index == limits.eos_id:
                    ended[picture].append(grown)
                else:
                    kept.append(grown)
                    parents.append(first + parent)
            first += len(hypotheses)
            live[picture] = kept
        cache = cache[parents]
        token = np.array([h.token_ids[-1] for kept in live for h in kept], dtype=np.int32)
    return [
        max((*done, *running), key=lambda h: h.score(length_penalty)) for done, running in zip(ended, live, strict=True)
    ]


def _advance(
    step: Step, token: NDArray[np.int32], position: int, cache: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return log-probabilities `(R, N)` of the next token, and the cache after this one."""
    logits, cache = step(token, np.full(len(token), position, dtype=np.int32), cache)
    return log_softmax(logits), cache


def _best(table: NDArray[np.float64], hypotheses: list[Hypothesis], width: int) -> list[tuple[int, int]]:
    """Return the `width` best (hypothesis, token) pairs by total log-probability, best first.

    Ties go to the earlier hypothesis and the smaller id, as in `argmax`.
    """
    if not hypotheses:
        return []
    totals = table + np.array([h.logprob for h in hypotheses])[:, None]
    order = np.argsort(-totals, axis=None, kind="stable")[:width]
    return [divmod(int(flat), table.shape[1]) for flat in order]


def _grow(hypothesis: Hypothesis, index: int, logprob: float) -> Hypothesis:
    return Hypothesis((*hypothesis.token_ids, index), (*hypothesis.logprobs, logprob))
