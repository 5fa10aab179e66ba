"""Beam search over all pictures of a batch at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.decoding.repeats import repeating
from pocketlens.runtime.decoding.sequence import LENGTH_PENALTY, Hypothesis, Limits, Step
from pocketlens.runtime.decoding.stepping import advance, forced

__all__ = ["beam_search", "beam_searches"]


def beam_search(
    step: Step, cache: Any, limits: Limits, *, beam: int, length_penalty: float = LENGTH_PENALTY
) -> list[Hypothesis]:
    """Return the best caption of each picture that a beam of `beam` hypotheses finds; see `beam_searches`."""
    found = beam_searches(step, cache, limits, beam=beam, length_penalty=length_penalty)
    return [captions[0] for captions in found]


def beam_searches(
    step: Step,
    cache: Any,
    limits: Limits,
    *,
    beam: int,
    length_penalty: float = LENGTH_PENALTY,
    no_repeat_ngram: int = 0,
) -> list[list[Hypothesis]]:
    """Return the captions of each picture that a beam of `beam` hypotheses ends with, best first.

    All hypotheses of all pictures go through one decode call per step. At each step a picture keeps
    its most probable continuations; one that ends leaves and narrows the beam by one, so a beam of 1
    is exactly `greedy`. Captions are ranked by `Hypothesis.score`; of equal ones, what ended earlier is first.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        beam: hypotheses per picture, at least 1.
        length_penalty: alpha of the length normalisation.
        no_repeat_ngram: see `greedy`.

    Returns:
        `B` lists in the order of the cache, of at most `beam` captions: fewer where the language has fewer.
    """
    if beam < 1:
        raise ValueError(f"beam: expected at least 1, found {beam}")
    captions, distribution, cache = forced(step, cache, limits)
    live = [[caption] for caption in captions]
    ended: list[list[Hypothesis]] = [[] for _ in live]
    for offset in range(len(limits.prompt), limits.max_tokens):
        if distribution is None:
            break
        table, entropies = distribution.table(), distribution.entropies
        parents: list[int] = []
        first = 0
        for picture, hypotheses in enumerate(live):
            rows = slice(first, first + len(hypotheses))
            kept = []
            for parent, token in _best(table[rows], hypotheses, beam - len(ended[picture]), no_repeat_ngram):
                cost, entropy = float(table[first + parent, token]), float(entropies[first + parent])
                grown = _grown(hypotheses[parent], token, cost, entropy)
                if token == limits.eos_id:
                    ended[picture].append(grown)
                else:
                    kept.append(grown)
                    parents.append(first + parent)
            first += len(hypotheses)
            live[picture] = kept
        fed = [caption.token_ids[-1] for kept in live for caption in kept]
        if not fed or offset + 1 == limits.max_tokens:
            break
        if parents != list(range(len(cache))):
            cache = cache[parents]
        distribution, cache = advance(step, fed, limits.start + offset + 1, cache)
    return [
        sorted((*done, *running), key=lambda h: -h.score(length_penalty))
        for done, running in zip(ended, live, strict=True)
    ]


def _best(
    table: NDArray[np.float64], hypotheses: Sequence[Hypothesis], width: int, no_repeat_ngram: int
) -> list[tuple[int, int]]:
    """Return the `width` best (hypothesis, token) pairs by total log-probability, best first.

    Ties go to the earlier hypothesis and the smaller id, as in `argmax`.
    """
    if not hypotheses or width < 1:
        return []
    totals = table + np.array([h.logprob for h in hypotheses])[:, None]
    for row, hypothesis in enumerate(hypotheses):
        totals[row, repeating(hypothesis.token_ids, no_repeat_ngram)] = -np.inf
    flat = totals.ravel()
    # Sorting beam x vocabulary numbers would cost more than a small decoder: only those that can win are sorted.
    least = np.partition(flat, -width)[-width] if width < len(flat) else -np.inf
    rivals = np.flatnonzero((flat >= least) & (flat > -np.inf))
    order = rivals[np.argsort(-flat[rivals], kind="stable")][:width]
    return [divmod(int(at), table.shape[1]) for at in order]


def _grown(hypothesis: Hypothesis, token: int, logprob: float, entropy: float) -> Hypothesis:
    return Hypothesis((*hypothesis.token_ids, token), (*hypothesis.logprobs, logprob), (*hypothesis.entropies, entropy))
