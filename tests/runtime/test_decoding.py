"""Greedy and beam search against brute force on a language small enough to enumerate."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlens.core.errors import EngineError
from pocketlens.runtime.decoding import (
    Distribution,
    Hypothesis,
    Limits,
    beam_search,
    beam_searches,
    greedy,
    log_softmax,
)
from tests.runtime.language import BOS, EOS, LIMITS, TOKENS, VOCAB, Language, next_logits, with_prompt
from tests.runtime.language import empty_cache as _cache


def _rescored_next(picture: int, ids: tuple[int, ...], tokens: int = 12) -> list[float]:
    """Return the log-probability of every token after `ids`, computed from the whole history."""
    history = _cache(picture + 1, tokens=tokens)[picture]
    history[1 : 2 + len(ids)] = [BOS, *ids]
    scores: list[float] = log_softmax(next_logits(history)).tolist()
    return scores


def _rescored(picture: int, ids: tuple[int, ...], tokens: int = TOKENS) -> list[float]:
    """Return the log-probability of each id."""
    return [_rescored_next(picture, ids[:count], tokens)[token] for count, token in enumerate(ids)]


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
        assert hypothesis.logprobs == pytest.approx(_rescored(picture, hypothesis.token_ids), abs=1e-6)


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


def test_entropies_are_those_of_the_model_at_each_token() -> None:
    for picture, hypothesis in enumerate(beam_search(Language(), _cache(20), LIMITS, beam=3)):
        for count, entropy in enumerate(hypothesis.entropies):
            history = _cache(picture + 1)[picture]
            history[1 : 2 + count] = [BOS, *hypothesis.token_ids[:count]]
            table = log_softmax(next_logits(history))
            assert entropy == pytest.approx(-float((np.exp(table) * table).sum()), abs=1e-6)
        assert len(hypothesis.entropies) == len(hypothesis.token_ids)


def test_a_beam_gives_its_captions_best_first_and_each_once() -> None:
    for captions in beam_searches(Language(), _cache(20), LIMITS, beam=4, length_penalty=0.6):
        scores = [caption.score(0.6) for caption in captions]
        assert scores == sorted(scores, reverse=True)
        assert len({caption.token_ids for caption in captions}) == len(captions) == 4


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_language_ranks_all_captions(length_penalty: float) -> None:
    [found] = beam_searches(Language(), _cache(1), LIMITS, beam=500, length_penalty=length_penalty)
    everything = [Hypothesis(ids, tuple(_rescored(0, ids))) for ids in _all_captions()]
    everything.sort(key=lambda other: -other.score(length_penalty))
    assert [h.token_ids for h in found] == [h.token_ids for h in everything]


def _ngrams(ids: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [ids[at : at + size] for at in range(len(ids) - size + 1)]


LONG = Limits(bos_id=BOS, eos_id=EOS, start=1, max_tokens=12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_n_gram_stands_twice_and_the_best_of_what_is_left_is_taken(size: int) -> None:
    free = greedy(Language(), _cache(40, tokens=12), LONG)
    found = greedy(Language(), _cache(40, tokens=12), LONG, no_repeat_ngram=size)
    wide = beam_searches(Language(), _cache(40, tokens=12), LONG, beam=3, no_repeat_ngram=size)
    repeated = 0
    for picture, hypothesis in enumerate(found):
        ids = hypothesis.token_ids
        for count, token in enumerate(ids):
            allowed = [t for t in range(VOCAB) if len(set(grams := _ngrams((*ids[:count], t), size))) == len(grams)]
            rivals = _rescored_next(picture, ids[:count])
            assert token == max(allowed, key=lambda t: rivals[t])
        # what is banned does not change what a token costs
        assert hypothesis.logprobs == pytest.approx(_rescored(picture, ids, tokens=12), abs=1e-6)
        repeated += ids != free[picture].token_ids
    for ids in (caption.token_ids for captions in wide for caption in captions):
        assert len(set(_ngrams(ids, size))) == len(_ngrams(ids, size))
    assert repeated > (0 if size == 3 else 5)


def test_a_prompt_is_forced_decoding() -> None:
    prompt = (3, 0)
    limits = with_prompt(LIMITS, prompt)
    for found in (
        greedy(Language(), _cache(20), limits),
        beam_search(Language(), _cache(20), limits, beam=1),
    ):
        for picture, hypothesis in enumerate(found):
            ids = hypothesis.token_ids
            assert ids[:2] == prompt
            assert hypothesis.logprobs == pytest.approx(_rescored(picture, ids), abs=1e-6)
            for count in range(2, len(ids)):
                assert ids[count] == int(np.argmax(_rescored_next(picture, ids[:count], tokens=TOKENS)))
            assert len(ids) <= TOKENS


def test_a_wide_beam_with_a_prompt_finds_the_best_caption_that_begins_with_it() -> None:
    prompt = (0,)
    found = beam_search(Language(), _cache(8), with_prompt(LIMITS, prompt), beam=500)
    for picture, hypothesis in enumerate(found):
        rivals = [Hypothesis(ids, tuple(_rescored(picture, ids))) for ids in _all_captions() if ids[:1] == prompt]
        assert hypothesis.token_ids == max(rivals, key=lambda other: other.score(0.6)).token_ids


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt: expected fewer than the 4 tokens"):
        with_prompt(LIMITS, (0, 0, 0, 0))


@given(
    pictures=st.integers(1, 6),
    beam=st.integers(1, 6),
    prompt=st.lists(st.sampled_from([0, 1, 3]), max_size=3),
    size=st.integers(0, 3),
    alpha=st.floats(0, 2),
)
def test_any_search_of_a_batch_is_that_of_each_picture(
    pictures: int, beam: int, prompt: list[int], size: int, alpha: float
) -> None:
    limits = with_prompt(LIMITS, tuple(prompt))
    options = {"beam": beam, "length_penalty": alpha, "no_repeat_ngram": size}
    batched = beam_searches(Language(), _cache(pictures), limits, **options)
    assert batched == [
        beam_searches(Language(), _cache(pictures)[[picture]], limits, **options)[0] for picture in range(pictures)
    ]
    if beam == 1:
        assert [captions[0] for captions in batched] == greedy(
            Language(), _cache(pictures), limits, no_repeat_ngram=size
        )


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_distribution_agrees_with_plain_double_precision(rows: list[list[float]]) -> None:
    logits = np.array(rows, dtype=np.float32)
    table = log_softmax(logits)
    distribution = Distribution(logits)
    np.testing.assert_allclose(distribution.table(), table, atol=2e-5)
    np.testing.assert_allclose(distribution.entropies, -(np.exp(table) * table).sum(axis=-1), atol=2e-5)
    assert distribution.best().tolist() == logits.argmax(axis=-1).tolist()
