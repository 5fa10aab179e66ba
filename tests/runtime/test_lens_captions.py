"""Captions of a lens over a real bundle: every way of decoding, streams, reranking, one encoder pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.bundle import Role, load_bundle
from pocketlens.core.captions import Caption
from pocketlens.core.errors import PictureError
from pocketlens.core.events import CaptionServed, Event
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime import Lens, Refusal, feature_table, load
from pocketlens.runtime.confidence import caption_features, confidence_of
from pocketlens.runtime.decoding import GREEDY, Beam, Decoding, Nucleus, length_divisor
from pocketlens.runtime.engines import Engine, open_engine
from pocketlens.runtime.results import CaptionPiece
from pocketlens.runtime.selection import choose_graphs

SAMPLED = Decoding(search=Nucleus(top_p=0.95, temperature=1.5, seed=11))
WAYS = {
    "greedy": GREEDY,
    "beam": Decoding(search=Beam(width=4), num_captions=3, length_penalty=1.0),
    "nucleus": msgspec.structs.replace(SAMPLED, num_captions=3),
    "no repeat": Decoding(no_repeat_ngram=1),
    "prompt": Decoding(prompt="a red", max_tokens=7),
    "reranked": Decoding(search=Beam(width=4), num_captions=4, rerank=True, rerank_weight=3.0),
}


class Counting:
    """An engine that counts the pictures it encodes."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.calls: dict[str, int] = {}
        self._engine = engine

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run and count."""
        self.calls[role] = self.calls.get(role, 0) + 1
        return self._engine.run(role, inputs)


class Recorder:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


@pytest.fixture(scope="module")
def lens(bundle_path: Path) -> Lens:
    return load(bundle_path, threads=1)


def _all(lens: Lens, pictures: list[bytes], decoding: Decoding, batch_size: int = 16) -> list[Caption]:
    found = list(lens.captions(pictures, decoding=decoding, batch_size=batch_size))
    return [caption for caption in found if isinstance(caption, Caption)]


def _ranks(captions: list[Caption]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in (caption, *caption.alternatives)] for caption in captions]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_is_each_picture_token_for_token(lens: Lens, pictures: list[bytes], way: str) -> None:
    batched = _all(lens, pictures, WAYS[way], batch_size=9)
    singles = [lens.caption(picture, decoding=WAYS[way]) for picture in pictures]
    assert _ranks(batched) == _ranks(singles)
    shuffled = _all(lens, pictures[::-1], WAYS[way], batch_size=7)
    assert _ranks(shuffled[::-1]) == _ranks(singles)


@pytest.mark.parametrize("way", WAYS)
def test_every_caption_has_a_cost_and_an_entropy_a_token_and_a_rank(
    lens: Lens, pictures: list[bytes], way: str
) -> None:
    decoding = WAYS[way]
    tokenizer = Tokenizer.from_file(lens.bundle.tokenizer_path, text_length=16)
    for caption in _all(lens, pictures, decoding):
        assert len(caption.alternatives) == decoding.num_captions - 1
        everything = (caption, *caption.alternatives)
        scores = []
        for one in everything:
            count = len(one.token_ids)
            assert len(one.token_logprobs) == len(one.token_entropies) == count <= (decoding.max_tokens or 8)
            assert all(0 <= entropy <= np.log(31) + 1e-6 for entropy in one.token_entropies)
            assert one.text == tokenizer.decode(one.token_ids)
            assert one.similarity is not None
            score = sum(one.token_logprobs) / length_divisor(count, decoding.length_penalty)
            score += decoding.rerank_weight * one.similarity if decoding.rerank else 0
            assert one.score == pytest.approx(score)
            scores.append(one.score)
        assert scores == sorted(scores, reverse=True)
        assert all(one.alternatives == () for one in caption.alternatives)


def test_reranking_changes_the_winner_to_one_that_fits_the_picture_better(lens: Lens, pictures: list[bytes]) -> None:
    beam = Decoding(search=Beam(width=6), num_captions=6)
    plain = _all(lens, pictures, beam)
    ranked = _all(lens, pictures, msgspec.structs.replace(beam, rerank=True, rerank_weight=5.0))
    assert [sorted(ids) for ids in _ranks(plain)] == [sorted(ids) for ids in _ranks(ranked)]
    changed = [(a, b) for a, b in zip(plain, ranked, strict=True) if a.token_ids != b.token_ids]
    assert len(changed) > 3
    assert all((b.similarity or 0) > (a.similarity or 0) for a, b in changed)
    weightless = _all(lens, pictures, msgspec.structs.replace(beam, rerank=True, rerank_weight=0.0))
    assert _ranks(weightless) == _ranks(plain)


def test_reranking_needs_a_text_encoder(rebuilt: Any, pictures: list[bytes]) -> None:
    lens = load(rebuilt(lambda m: msgspec.structs.replace(m, tasks=("caption",))))
    with pytest.raises(ValueError, match="rerank: expected a bundle that embeds texts"):
        lens.captions(pictures, decoding=WAYS["reranked"])


def test_a_prompt_begins_every_caption_and_does_not_count_as_said(lens: Lens, pictures: list[bytes]) -> None:
    for caption in _all(lens, pictures, Decoding(prompt=" a Red ")):
        assert caption.text.startswith("a red")
        assert caption.prompt_tokens == len("a red")
        said = caption.token_logprobs[caption.prompt_tokens :]
        features = caption_features(said, caption.similarity)
        np.testing.assert_allclose(feature_table([caption])[0], features)
        expected = confidence_of(features, None) if caption.text != "a red" else 0.0
        assert caption.confidence == pytest.approx(expected)


def test_a_prompt_of_what_greedy_says_changes_nothing(lens: Lens, pictures: list[bytes]) -> None:
    tried = 0
    for picture in pictures:
        free = lens.caption(picture)
        begin = free.text[:2]
        if len(begin) == 2 and " " not in begin:
            prompted = lens.caption(picture, decoding=Decoding(prompt=begin))
            assert prompted.token_ids == free.token_ids
            assert prompted.token_logprobs == pytest.approx(free.token_logprobs, abs=1e-5)
            tried += 1
    assert tried > 5


def test_a_prompt_that_fills_the_cache_is_refused_before_the_first_picture(lens: Lens) -> None:
    with pytest.raises(ValueError, match="prompt: expected fewer than the 8 tokens"):
        lens.captions([b"never looked at"], decoding=Decoding(prompt="abcdefgh"))


def test_saying_it_both_ways_is_refused(lens: Lens, pictures: list[bytes]) -> None:
    with pytest.raises(ValueError, match="both ways"):
        lens.caption(pictures[0], beam=2, decoding=GREEDY)
    with pytest.raises(ValueError, match="both ways"):
        lens.caption(pictures[0], max_tokens=2, decoding=GREEDY)
    assert lens.caption(pictures[0], beam=3) == lens.caption(pictures[0], decoding=Decoding(search=Beam(width=3)))


def test_the_seed_decides_what_is_drawn(lens: Lens, pictures: list[bytes]) -> None:
    other = Decoding(search=Nucleus(top_p=0.95, temperature=1.5, seed=12))
    first, again, second = (_ranks(_all(lens, pictures, decoding)) for decoding in (SAMPLED, SAMPLED, other))
    assert first == again
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 20


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED, Decoding(prompt="a red")], ids=["greedy", "nucleus", "prompt"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_streams_add_up_to_the_captions(lens: Lens, pictures: list[bytes], decoding: Decoding, batch_size: int) -> None:
    batch = [*pictures[:5], b"broken", *pictures[5:20]]
    texts: dict[int, str] = {}
    captions: dict[int, Caption] = {}
    for piece in lens.caption_streams(batch, decoding=decoding, batch_size=batch_size):
        if isinstance(piece, Refusal):
            assert piece.index == 5
            continue
        assert piece.index not in captions
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        if piece.caption is not None:
            captions[piece.index] = piece.caption
    expected = list(lens.captions(batch, decoding=decoding, batch_size=batch_size))
    assert [captions[i].token_ids for i in range(21) if i != 5] == [
        caption.token_ids for caption in expected if isinstance(caption, Caption)
    ]
    assert texts == {index: caption.text for index, caption in captions.items()}


def test_a_stream_hands_out_text_before_the_caption_is_whole(lens: Lens, pictures: list[bytes]) -> None:
    pieces = [list(lens.caption_stream(picture)) for picture in pictures]
    assert all(isinstance(piece, CaptionPiece) and piece.index == 0 for stream in pieces for piece in stream)
    assert max(sum(piece.text != "" for piece in stream) for stream in pieces) >= 5
    for stream in pieces:
        assert [piece.caption is None for piece in stream] == [True] * (len(stream) - 1) + [False]


def test_streams_of_a_batch_grow_side_by_side(lens: Lens, pictures: list[bytes]) -> None:
    order = [p.index for p in lens.caption_streams(pictures[:8], batch_size=8) if isinstance(p, CaptionPiece)]
    assert order != sorted(order)


def test_a_beam_does_not_stream(lens: Lens, pictures: list[bytes]) -> None:
    with pytest.raises(ValueError, match="found a beam or several"):
        lens.caption_streams(pictures, decoding=WAYS["beam"])


def test_a_stream_that_refuses_raises_and_a_served_one_is_an_event(
    bundle_path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    sink = Recorder()
    lens = load(bundle_path, sink=sink, fallback=lambda picture, caption: caption.withheld())
    with pytest.raises(PictureError, match="file"):
        list(lens.caption_stream(tmp_path))
    *_, last = lens.caption_stream(pictures[0])
    assert last.caption is not None
    assert (last.caption.source, last.caption.text) == ("abstained", "")
    assert [event.source for event in sink.events if isinstance(event, CaptionServed)] == ["abstained"]


@pytest.fixture
def counted(bundle_path: Path) -> tuple[Lens, Counting]:
    bundle = load_bundle(bundle_path)
    graphs = choose_graphs(bundle, engine="onnxruntime", precision="fp32")
    engine = Counting(open_engine("onnxruntime", bundle, graphs, threads=1))
    tokenizer = Tokenizer.from_file(bundle.tokenizer_path, text_length=bundle.manifest.tokenizer.text_length)
    return Lens(bundle, engine, tokenizer, precision="fp32"), engine


@pytest.mark.parametrize("way", WAYS)
def test_embedding_and_all_captions_take_one_encoder_pass(
    counted: tuple[Lens, Counting], pictures: list[bytes], way: str
) -> None:
    lens, engine = counted
    both = lens.describe(pictures[0], decoding=WAYS[way])
    assert (engine.calls["image_encoder"], engine.calls["caption_prefill"]) == (1, 1)
    np.testing.assert_array_equal(both.embedding, lens.embed_image(pictures[0]))
    engine.calls.clear()
    assert len(list(lens.descriptions(pictures[:20], decoding=WAYS[way], batch_size=10))) == 20
    assert engine.calls["image_encoder"] == engine.calls["caption_prefill"] == 2
    most = WAYS[way].max_tokens or 8
    assert engine.calls["caption_decode"] <= 2 * most


def test_a_withheld_caption_says_nothing_of_what_was_seen(lens: Lens, pictures: list[bytes]) -> None:
    caption = lens.caption(pictures[0], decoding=WAYS["beam"])
    assert caption.withheld() == Caption(
        text="", confidence=caption.confidence, source="abstained", model_version=lens.model_version
    )
