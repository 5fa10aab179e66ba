"""Captions as they grow: their tokens, and their text where characters span several tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from pocketlens.core.tokenizer import SPECIAL_TOKENS, Tokenizer
from pocketlens.runtime.decoding import Beam, Decoding, Hypothesis, Nucleus, PartialText, search, stream
from tests.runtime.language import LIMITS, Language, empty_cache, with_prompt


def _byte_level() -> Tokenizer:
    """Return a tokenizer with a token for each byte and none longer: every character but ASCII spans several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return Tokenizer(backend, text_length=8)


def _word_piece() -> Tokenizer:
    words = ["a", "cat", "##s", "'", "s", ".", ",", "do", "not", "n't", "sofa", "##s"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *words]))}
    backend = Backend(models.WordPiece(vocab=vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return Tokenizer(backend, text_length=8)


BYTES, WORDS = _byte_level(), _word_piece()


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    text = PartialText(tokenizer.decode)
    return [text.grown(ids[: count + 1], ended=count + 1 == len(ids)) for count in range(len(ids))]


@given(st.text(max_size=12))
def test_pieces_of_any_text_add_up_to_it_and_hold_whole_characters(text: str) -> None:
    ids = [*BYTES.encode(text), BYTES.eos_id]
    pieces = _pieces(BYTES, ids)
    assert "".join(pieces) == BYTES.decode(ids) == text.strip()
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), min_size=1, max_size=14))
def test_pieces_of_bytes_that_are_no_text_add_up_too(ids: list[int]) -> None:
    assert "".join(_pieces(BYTES, ids)) == BYTES.decode(ids)


@given(st.lists(st.integers(0, WORDS.vocab_size - 1), min_size=1, max_size=10))
def test_pieces_of_words_add_up(ids: list[int]) -> None:
    assert "".join(_pieces(WORDS, ids)) == WORDS.decode(ids)


def test_a_character_comes_with_its_last_token() -> None:
    pieces = _pieces(BYTES, [*BYTES.encode("né 🐈!"), BYTES.eos_id])
    assert pieces == ["n", "", "é", "", "", "", "", " 🐈", "!", ""]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(search=Nucleus(top_p=0.9, seed=4), no_repeat_ngram=2)])
@pytest.mark.parametrize("prompt", [(), (3, 0)])
def test_a_stream_ends_with_the_captions_that_a_search_finds(decoding: Decoding, prompt: tuple[int, ...]) -> None:
    limits, keys = with_prompt(LIMITS, prompt), range(20)
    grown: dict[int, list[Hypothesis]] = {}
    ended: list[int] = []
    for step in stream(Language(), empty_cache(20), limits, decoding, keys):
        for row, caption, over in step:
            assert row not in ended
            before = grown.setdefault(row, [])
            assert caption.token_ids[:-1] == (before[-1].token_ids if before else ())
            before.append(caption)
            ended += [row] if over else []
    found = search(Language(), empty_cache(20), limits, decoding, keys)
    assert [grown[row][-1] for row in range(20)] == [captions[0] for captions in found]
    assert sorted(ended) == list(range(20))


@pytest.mark.parametrize("decoding", [Decoding(search=Beam(width=2)), Decoding(search=Nucleus(), num_captions=2)])
def test_what_has_no_partial_text_is_refused(decoding: Decoding) -> None:
    with pytest.raises(ValueError, match="stream: expected one caption"):
        stream(Language(), empty_cache(1), LIMITS, decoding, [0])
