"""From a filled cache and a `Decoding` to the captions of each picture, and to those of a stream."""

from collections.abc import Iterator, Sequence
from typing import Any

from pocketlens.runtime.decoding.beam import beam_searches
from pocketlens.runtime.decoding.greedy import greedy, most_probable
from pocketlens.runtime.decoding.nucleus import from_nucleus, nucleus, uniforms
from pocketlens.runtime.decoding.options import Beam, Decoding, Nucleus
from pocketlens.runtime.decoding.sequence import Hypothesis, Limits, Step
from pocketlens.runtime.decoding.stepping import Growth, grow

__all__ = ["search", "stream"]


def search(step: Step, cache: Any, limits: Limits, decoding: Decoding, keys: Sequence[int]) -> list[list[Hypothesis]]:
    """Return the captions of each picture, best first by `Hypothesis.score`.

    Args:
        step: one decode call.
        cache: prefilled, axis 0 is `B`.
        limits: beginning and end.
        decoding: how; its `max_tokens` and `prompt` are in `limits` already.
        keys: what the draws of each picture depend on, `B` numbers in [0, 2**64); used by `Nucleus` alone.
    """
    how, ngram = decoding.search, decoding.no_repeat_ngram
    if isinstance(how, Nucleus):
        drawn = nucleus(
            step,
            cache,
            limits,
            keys=keys,
            seed=how.seed,
            top_p=how.top_p,
            temperature=how.temperature,
            copies=decoding.num_captions,
            no_repeat_ngram=ngram,
        )
        return [sorted(captions, key=lambda h: -h.score(decoding.length_penalty)) for captions in drawn]
    if isinstance(how, Beam) and how.width > 1:
        found = beam_searches(
            step, cache, limits, beam=how.width, length_penalty=decoding.length_penalty, no_repeat_ngram=ngram
        )
        return [captions[: decoding.num_captions] for captions in found]
    return [[caption] for caption in greedy(step, cache, limits, no_repeat_ngram=ngram)]


def stream(step: Step, cache: Any, limits: Limits, decoding: Decoding, keys: Sequence[int]) -> Iterator[list[Growth]]:
    """Yield, for each step, the tokens that live captions grew by; row is picture. Arguments as in `search`.

    Raises:
        ValueError: a beam or several captions: they have no partial text.
    """
    if not decoding.streams:
        raise ValueError("stream: expected one caption from greedy decoding or a nucleus, found a beam or several")
    how, ngram = decoding.search, decoding.no_repeat_ngram
    if not isinstance(how, Nucleus):
        return grow(step, cache, limits, most_probable(ngram))
    draws = [uniforms(how.seed, key, 0, limits.max_tokens) for key in keys]
    choose = from_nucleus(draws, top_p=how.top_p, temperature=how.temperature, no_repeat_ngram=ngram)
    return grow(step, cache, limits, choose)
