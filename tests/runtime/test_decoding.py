"""Greedy and beam search against brute force on a language small enough to enumerate.

The cache of this language is the row of tokens that were fed so far, so that a search which mixes up
rows or positions gets other logits.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError
from pocketlens.runtime.decoding import Hypothesis, Limits, beam_search, greedy, log_softmax

VOCAB, BOS, EOS, TOKENS = 4, 1, 2, 4
LIMITS = Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=TOKENS)


def _cache(pictures: int) -> NDArray[np.int64]:
    """Return caches `(B, 1 + TOKENS)`: the picture's number, then room for the tokens."""
    cache = np.full((pictures, 1 + TOKENS), -1)
    cache[:, 0] = np.arange(pictures)
    return cache


def _logits(history: NDArray[np.int64]) -> NDArray[np.float32]:
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
        cache = cache.copy()
        cache[np.arange(len(cache)), position] = token
        self.rows.append(len(token))
        return np.array([_logits(row) for row in cache]), cache


def _rescored(picture: int, ids: tuple[int, ...]) -> list[float]:
    """Return the log-probability of each id, every one computed from the whole history."""
    scores = []
    for count in range(len(ids)):
        history = _cache(picture + 1)[picture]
        history[1 : 2 + count] = [BOS, *ids[:count]]
        scores.append(float(log_softmax(_logits(history))[ids[count]]))
    return scores


def _all_captions() -> Iterator[tuple[int, ...]]:
    others = [token for token in range(VOCAB) if token != EOS]
    for length in range(TOKENS):
        for words in itertools.product(others, repeat=length):
            yield (*words, EOS)
    yield from itertools.product(others, repeat=TOKENS)


def test_log_softmax_is_a_distribution_that_ignores_a_shift() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (7, 50)).astype(np.float32)
    table = log_softmax(logits)
    np.testing.assert_allclose(np.exp(table).sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(log_softmax(logits.astype(np.float64) + 1000), table, atol=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(broken: float) -> None:
    with pytest.raises(EngineError, match="finite logits"):
        log_softmax(np.array([[0.0, broken]], dtype=np.float32))


def test_the_probabilities_of_all_captions_sum_to_one() -> None:
    total = sum(np.exp(sum(_rescored(0, ids))) for ids in _all_captions())
    assert total == pytest.approx(1, abs=1e-12)


def test_greedy_takes_the_most_probable_token_at_each_step() -> None:
    for picture, hypothesis in enumerate(greedy(Language(), _cache(20), LIMITS)):
        ids = hypothesis.token_ids
        for count, token in enumerate(ids):
            rivals = [_rescored(picture, (*ids[:count], rival))[-1] for rival in range(VOCAB)]
            assert token == int(np.argmax(rivals))
        assert ids[-1] == EOS or len(ids) == TOKENS
        assert EOS not in ids[:-1]


def test_greedy_of_a_batch_is_greedy_of_each_picture() -> None:
    batched = greedy(Language(), _cache(20), LIMITS)
    singles = [greedy(Language(), _cache(20)[[picture]], LIMITS)[0] for picture in range(20)]
    assert batched == singles
    assert len({len(hypothesis.token_ids) for hypothesis in batched}) > 1


def test_greedy_pays_only_for_captions_that_go_on() -> None:
    language = Language()
    hypotheses = greedy(language, _cache(20), LIMITS)
    lengths = [len(hypothesis.token_ids) for hypothesis in hypotheses]
    assert language.rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_beam_of_one_is_greedy() -> None:
    assert beam_search(Language(), _cache(30), LIMITS, beam=1) == greedy(Language(), _cache(30), LIMITS)


@pytest.mark.parametrize("beam", [2, 3])
def test_beam_search_of_a_batch_is_beam_search_of_each_picture(beam: int) -> None:
    batched = beam_search(Language(), _cache(20), LIMITS, beam=beam)
    singles = [beam_search(Language(), _cache(20)[[picture]], LIMITS, beam=beam)[0] for picture in range(20)]
    assert batched == singles


@pytest.mark.parametrize("beam", [1, 3])
def test_log_probabilities_are_those_of_the_caption_scored_from_scratch(beam: int) -> None:
    for picture, hypothesis in enumerate(beam_search(Language(), _cache(20), LIMITS, beam=beam)):
        assert hypothesis.logprobs == pytest.approx(_rescored(picture, hypothesis.token_ids), abs=1e-12)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
def test_a_beam_as_wide_as_the_language_finds_the_best_caption(length_penalty: float) -> None:
    found = beam_search(Language(), _cache(5), LIMITS, beam=500, length_penalty=length_penalty)
    for picture, hypothesis in enumerate(found):
        everything = (Hypothesis(ids, tuple(_rescored(picture, ids))) for ids in _all_captions())
        best = max(everything, key=lambda other: other.score(length_penalty))
        assert hypothesis.token_ids == best.token_ids


def test_a_wider_beam_finds_more_probable_captions_than_greedy() -> None:
    by_greedy = greedy(Language(), _cache(50), LIMITS)
    by_beam = beam_search(Language(), _cache(50), LIMITS, beam=3, length_penalty=0.0)
    gains = [b.logprob - g.logprob for b, g in zip(by_beam, by_greedy, strict=True)]
    assert np.mean(gains) > 0.1
    assert min(gains) > -0.5


def test_a_length_penalty_favours_longer_captions() -> None:
    def words(alpha: float) -> int:
        found = beam_search(Language(), _cache(30), LIMITS, beam=4, length_penalty=alpha)
        return sum(len(hypothesis.token_ids) for hypothesis in found)

    assert words(2.0) > words(0.0)


def test_max_tokens_is_never_exceeded() -> None:
    short = Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=2)
    for hypotheses in (
        greedy(Language(), _cache(9), short),
        beam_search(Language(), _cache(9), short, beam=3),
    ):
        assert max(len(hypothesis.token_ids) for hypothesis in hypotheses) == 2


def test_no_pictures_give_no_captions() -> None:
    assert greedy(Language(), _cache(0), LIMITS) == []
    assert beam_search(Language(), _cache(0), LIMITS, beam=2) == []


def test_a_beam_or_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="beam"):
        beam_search(Language(), _cache(1), LIMITS, beam=0)
    with pytest.raises(ValueError, match="max_tokens"):
        Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=0)
