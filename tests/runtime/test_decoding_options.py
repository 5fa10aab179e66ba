"""What a caller may ask of decoding, and what it may not."""

import msgspec
import pytest

from pocketlens.runtime.decoding import GREEDY, Beam, Decoding, Greedy, Nucleus


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beam(width=0), "beam: expected at least 1, found 0"),
        (lambda: Nucleus(top_p=0.0), "top_p: expected above 0 and at most 1, found 0.0"),
        (lambda: Nucleus(top_p=1.01), "top_p: expected above 0 and at most 1"),
        (lambda: Nucleus(top_p=float("nan")), "top_p: expected above 0"),
        (lambda: Nucleus(temperature=0.0), "temperature: expected a number above 0, found 0.0"),
        (lambda: Nucleus(temperature=float("inf")), "temperature: expected a number above 0"),
        (lambda: Nucleus(seed=-1), "seed: expected 0 to"),
        (lambda: Nucleus(seed=2**64), "seed: expected 0 to"),
        (lambda: Decoding(num_captions=0), "num_captions: expected at least 1"),
        (lambda: Decoding(max_tokens=0), "max_tokens: expected at least 1"),
        (lambda: Decoding(no_repeat_ngram=-1), "no_repeat_ngram: expected at least 0"),
        (lambda: Decoding(length_penalty=-0.1), "length_penalty: expected a number of at least 0"),
        (lambda: Decoding(length_penalty=float("nan")), "length_penalty: expected a number of at least 0"),
        (lambda: Decoding(rerank_weight=float("inf")), "rerank_weight: expected a number of at least 0"),
        (lambda: Decoding(num_captions=2), "num_captions: expected at most 1 from greedy decoding, found 2"),
        (lambda: Decoding(search=Beam(width=3), num_captions=4), "expected at most 3 from a beam of 3, found 4"),
        (lambda: Decoding(search=Nucleus(), rerank=True), "rerank: expected num_captions above 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_one_greedy_or_drawn_caption_can_be_streamed_and_nothing_else() -> None:
    assert GREEDY.streams
    assert Decoding(search=Nucleus()).streams
    assert Decoding(search=Beam(width=1)).streams
    assert not Decoding(search=Beam(width=2)).streams
    assert not Decoding(search=Nucleus(), num_captions=2).streams


@pytest.mark.parametrize("search", [Greedy(), Beam(width=3), Nucleus(top_p=0.5, temperature=0.7, seed=2**63)])
def test_options_survive_json(search: Greedy | Beam | Nucleus) -> None:
    decoding = Decoding(search=search, prompt="a photo of", no_repeat_ngram=2, length_penalty=1.0)
    assert msgspec.json.decode(msgspec.json.encode(decoding), type=Decoding) == decoding
    with pytest.raises(msgspec.ValidationError, match="top_p"):
        msgspec.json.decode(b'{"search": {"type": "nucleus", "top_p": 2.0}}', type=Decoding)
