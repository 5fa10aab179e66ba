"""One token for each live caption, step after step: what greedy and nucleus decoding and streaming have in common."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.decoding.distribution import Distribution
from pocketlens.runtime.decoding.sequence import Hypothesis, Limits, Step

__all__ = ["Choice", "Growth", "advance", "finished", "forced", "grow"]


class Growth(NamedTuple):
    """One token that was added to one caption.

    Attributes:
        row: which caption, counted from 0 in the order of the cache.
        caption: the caption with the token in it.
        ended: nothing follows: it is the end token, or there is no room for another.
    """

    row: int
    caption: Hypothesis
    ended: bool


Choice = Callable[[Distribution, list[int], list[Hypothesis]], NDArray[np.int32]]
"""Gives the next token of each live caption `(R,)`, from its distribution, its row and itself."""


def forced(step: Step, cache: Any, limits: Limits) -> tuple[list[Hypothesis], Distribution | None, Any]:
    """Feed `<bos>` and the prompt; return the captions so far, what may follow, and the cache.

    What may follow is `None` for no pictures.
    """
    captions = [Hypothesis((), ()) for _ in range(len(cache))]
    distribution: Distribution | None = None
    for offset, token in enumerate((limits.bos_id, *limits.prompt) if captions else ()):
        if distribution is not None:
            captions = _extended(captions, distribution, np.full(len(captions), token, dtype=np.int32))
        distribution, cache = advance(step, [token] * len(captions), limits.start + offset, cache)
    return captions, distribution, cache


def grow(step: Step, cache: Any, limits: Limits, choose: Choice, *, copies: int = 1) -> Iterator[list[Growth]]:
    """Yield, for each step, the tokens that live captions grew by.

    A caption that ends leaves the batch, so that nobody pays for it. The first items are the prompt's tokens, if
    there is a prompt.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        choose: picks the next tokens.
        copies: captions per picture; they share the decode calls up to the end of the prompt. Row
            `picture * copies + copy` is one of them.
    """
    captions, distribution, cache = forced(step, cache, limits)
    if distribution is None:
        return
    for length in range(1, len(limits.prompt) + 1):
        yield [
            Growth(row, _beginning(captions[row // copies], length), ended=False)
            for row in range(len(captions) * copies)
        ]
    rows = list(range(len(captions) * copies))
    if copies > 1:
        owners = [row // copies for row in rows]
        captions, distribution, cache = [captions[at] for at in owners], distribution.rows(owners), cache[owners]
    for offset in range(len(limits.prompt), limits.max_tokens):
        tokens = choose(distribution, rows, captions)
        captions = _extended(captions, distribution, tokens)
        last = offset + 1 == limits.max_tokens
        ended = [last or token == limits.eos_id for token in tokens.tolist()]
        yield [Growth(*found) for found in zip(rows, captions, ended, strict=True)]
        live = [at for at, over in enumerate(ended) if not over]
        if not live:
            return
        if len(live) < len(rows):
            rows, captions, cache = [rows[at] for at in live], [captions[at] for at in live], cache[live]
        fed = [caption.token_ids[-1] for caption in captions]
        distribution, cache = advance(step, fed, limits.start + offset + 1, cache)


def finished(steps: Iterable[list[Growth]]) -> list[Hypothesis]:
    """Return the captions that `steps` ended with, in the order of their rows."""
    captions = {growth.row: growth.caption for step in steps for growth in step}
    return [captions[row] for row in sorted(captions)]


def advance(step: Step, tokens: Sequence[int], position: int, cache: Any) -> tuple[Distribution, Any]:
    """Feed one token per row at `position`; return what may follow and the cache after it."""
    fed = np.array(tokens, dtype=np.int32)
    logits, cache = step(fed, np.full(len(fed), position, dtype=np.int32), cache)
    return Distribution(logits), cache


def _extended(captions: list[Hypothesis], distribution: Distribution, tokens: NDArray[np.int32]) -> list[Hypothesis]:
    costs = zip(
        captions, tokens.tolist(), distribution.logprobs(tokens).tolist(), distribution.entropies.tolist(), strict=True
    )
    return [
        Hypothesis((*c.token_ids, token), (*c.logprobs, logprob), (*c.entropies, entropy))
        for c, token, logprob, entropy in costs
    ]


def _beginning(caption: Hypothesis, length: int) -> Hypothesis:
    return Hypothesis(caption.token_ids[:length], caption.logprobs[:length], caption.entropies[:length])
