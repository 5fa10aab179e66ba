"""Nucleus sampling against the true truncated distribution, and its draws."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlens.runtime.decoding import Limits, greedy, nucleus, uniforms
from pocketlens.runtime.decoding.distribution import Distribution
from pocketlens.runtime.decoding.nucleus import from_nucleus
from pocketlens.runtime.decoding.sequence import Hypothesis
from tests.runtime.language import BOS, EOS, LIMITS, TOKENS, Language, empty_cache, with_prompt

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.03, 0.02])


def _truncated(probabilities: NDArray[np.float64], top_p: float, temperature: float) -> NDArray[np.float64]:
    """Return the distribution that is drawn from, by the definition: grow the set until it reaches p."""
    cooled = probabilities ** (1 / temperature)
    cooled /= cooled.sum()
    kept: list[int] = []
    while sum(cooled[kept]) < top_p - 1e-12:
        kept.append(max((t for t in range(len(cooled)) if t not in kept), key=lambda t: cooled[t]))
    out = np.zeros_like(cooled)
    out[kept] = cooled[kept]
    return out / out.sum()


def _one_token(draws: int, *, top_p: float, temperature: float) -> NDArray[np.int64]:
    """Return how often each token comes out of `draws` draws with as many pictures."""
    logits = np.log(PROBABILITIES)[None].repeat(draws, axis=0).astype(np.float32)
    rows = [uniforms(7, key, 0, 1) for key in range(draws)]
    choose = from_nucleus(rows, top_p=top_p, temperature=temperature)
    tokens = choose(Distribution(logits), list(range(draws)), [Hypothesis((), ())] * draws)
    return np.bincount(tokens, minlength=len(PROBABILITIES))


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.6, 1.0), (0.75, 0.5), (0.9, 2.0), (0.3, 1.0)])
def test_frequencies_are_those_of_the_truncated_distribution(top_p: float, temperature: float) -> None:
    draws = 8_000
    counts = _one_token(draws, top_p=top_p, temperature=temperature)
    expected = draws * _truncated(PROBABILITIES, top_p, temperature)
    inside = expected > 0
    assert counts[~inside].sum() == 0
    chi_square = ((counts[inside] - expected[inside]) ** 2 / expected[inside]).sum()
    # 99.9 % quantiles of chi-square with 0 to 6 degrees of freedom.
    assert chi_square <= [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46][int(inside.sum()) - 1]
    if inside.sum() > 1:  # and it tells the truncated distribution from the whole one or a neighbour
        wrong = draws * np.roll(expected / draws, 1)[inside] + 1e-9
        assert ((counts[inside] - wrong) ** 2 / wrong).sum() > 100


def test_a_nucleus_of_next_to_nothing_is_greedy() -> None:
    drawn = nucleus(Language(), empty_cache(20), LIMITS, keys=range(20), seed=1, top_p=1e-9)
    assert [captions[0] for captions in drawn] == greedy(Language(), empty_cache(20), LIMITS)
    cold = nucleus(Language(), empty_cache(20), LIMITS, keys=range(20), seed=1, top_p=1.0, temperature=1e-3)
    assert [c[0].token_ids for c in cold] == [h.token_ids for h in greedy(Language(), empty_cache(20), LIMITS)]


def test_whole_captions_come_as_often_as_they_are_probable() -> None:
    draws, wanted = 4000, Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=2)
    cache = empty_cache(1)[[0] * draws]
    drawn = nucleus(Language(), cache, wanted, keys=range(draws), seed=3, top_p=1.0)
    found: dict[tuple[int, ...], list[float]] = {}
    for [caption] in drawn:
        found.setdefault(caption.token_ids, []).append(np.exp(caption.logprob))
    expected = np.array([draws * values[0] for values in found.values()])
    counts = np.array([len(values) for values in found.values()])
    common = expected > 5
    assert common.sum() >= 5
    # 99.9 % quantile of chi-square with as many degrees of freedom as there are captions at most (13).
    assert ((counts - expected)[common] ** 2 / expected[common]).sum() < 34.6


@given(
    order=st.permutations(range(6)),
    size=st.integers(1, 6),
    copies=st.integers(1, 3),
    ngram=st.integers(0, 2),
    prompt=st.lists(st.sampled_from([0, 3]), max_size=2),
)
def test_a_picture_gets_the_same_captions_whatever_is_beside_it(
    order: list[int], size: int, copies: int, ngram: int, prompt: list[int]
) -> None:
    limits = with_prompt(LIMITS, tuple(prompt))
    options = {"seed": 5, "top_p": 0.8, "temperature": 1.3, "copies": copies, "no_repeat_ngram": ngram}
    cache = empty_cache(6)
    alone = [nucleus(Language(), cache[[p]], limits, keys=[p + 100], **options)[0] for p in range(6)]
    for first in range(0, 6, size):
        batch = order[first : first + size]
        found = nucleus(Language(), cache[batch], limits, keys=[p + 100 for p in batch], **options)
        assert found == [alone[p] for p in batch]


def test_more_captions_begin_with_those_of_fewer() -> None:
    options = {"keys": [4, 5], "seed": 1, "top_p": 0.95}
    few = nucleus(Language(), empty_cache(2), LIMITS, copies=2, **options)
    many = nucleus(Language(), empty_cache(2), LIMITS, copies=5, **options)
    assert [captions[:2] for captions in many] == few


def test_seed_picture_and_copy_each_change_the_draws() -> None:
    draws = [uniforms(*what, 50) for what in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2**64 - 1, 2**64 - 1, 0))]
    assert all(not np.array_equal(a, b) for a, b in pairwise(draws))
    assert all((row >= 0).all() and (row < 1).all() for row in draws)
    np.testing.assert_array_equal(uniforms(1, 2, 3, 9), draws[0][:9])


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Return one block of Philox 4x64 with 10 rounds, as Salmon et al. 2011 define it."""
    word = 2**64
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B97F4A7C15) % word, (key[1] + 0xBB67AE8584CAA73B) % word]
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], word)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], word)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
    return counter


def test_the_draws_are_those_of_the_published_generator() -> None:
    # Counted from 1: NumPy's generator counts up before its first block.
    words = [word for block in (1, 2) for word in _philox([block, 5, 0, 0], [42, 2**64 - 7])]
    assert uniforms(42, 2**64 - 7, 5, 8).tolist() == [(word >> 11) / 2**53 for word in words]


def test_copies_share_the_decode_calls_of_the_prompt() -> None:
    language = Language()
    nucleus(language, empty_cache(3), with_prompt(LIMITS, (0, 3)), keys=[1, 2, 3], seed=0, top_p=1.0, copies=4)
    assert language.rows[:3] == [3, 3, 3]
    assert all(rows <= 12 for rows in language.rows)
    assert len(language.rows) <= TOKENS


def test_sampling_repeats_no_n_gram() -> None:
    limits = Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=10)
    drawn = nucleus(Language(), empty_cache(60, 10), limits, keys=range(60), seed=2, top_p=1.0, no_repeat_ngram=2)
    for [caption] in drawn:
        grams = list(pairwise(caption.token_ids))
        assert len(set(grams)) == len(grams)
