"""A lens over a real bundle: embeddings, captions, refusals, events, the fallback."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.bundle import ConfidenceSpec, Manifest, load_bundle
from pocketlens.core.captions import Caption
from pocketlens.core.errors import (
    BundleIncomplete,
    BundleMissing,
    BundleSchemaError,
    BundleTampered,
    EngineError,
    PictureError,
)
from pocketlens.core.events import CaptionServed, EmbeddingServed, EngineLoaded, Event, PictureRefused
from pocketlens.core.preprocess import preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime import Description, Lens, Refusal, load

Weights = dict[str, NDArray[np.float32]]
Rebuilt = Callable[[Callable[[Manifest], Manifest]], Path]


class Recorder:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def lens(bundle_path: Path) -> Lens:
    return load(bundle_path, threads=1)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _visual_tokens(pixels: NDArray[np.uint8], weights: Weights) -> NDArray[np.float64]:
    """Return `(V, E)`: 4 x 4 patches through one matrix and a tanh."""
    centred = pixels / 255 - 0.5
    patches = [centred[y : y + 4, x : x + 4].ravel() for y in (0, 4) for x in (0, 4)]
    return np.tanh(np.array(patches) @ weights["patch_weight"])


def _next_logprobs(visual: NDArray[np.float64], ids: list[int], w: Weights) -> NDArray[np.float64]:
    """Return the log-probabilities after `ids`, from the whole sequence and without any cache."""
    count, heads = len(visual), 2
    text = w["token_table"][ids] + w["position_table"][count : count + len(ids)]
    everything = np.concatenate([visual, text])
    split = lambda x: x.reshape(len(x), heads, -1).transpose(1, 0, 2)  # noqa: E731 - (heads, S, K)
    query = split(text[-1:] @ w["query_weight"])
    keys, values = split(everything @ w["key_weight"]), split(everything @ w["value_weight"])
    attention = _softmax(query @ keys.transpose(0, 2, 1) / np.sqrt(keys.shape[-1]))
    mixed = (attention @ values).transpose(1, 0, 2).reshape(-1)
    logits = (text[-1] + mixed @ w["output_weight"]) @ w["logit_weight"] + w["logit_bias"]
    return np.log(_softmax(logits))


def test_an_image_embedding_has_unit_norm_and_is_what_the_weights_say(
    lens: Lens, pictures: list[bytes], weights: Weights
) -> None:
    vector = lens.embed_image(pictures[0])
    assert vector.dtype == np.float32
    assert vector.shape == (lens.dim,)
    pixels = preprocess(pictures[0], lens.bundle.manifest.preprocess)
    expected = _visual_tokens(pixels, weights).mean(axis=0) @ weights["image_projection"]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_text_embedding_has_unit_norm_and_ignores_padding(lens: Lens, weights: Weights) -> None:
    vector = lens.embed_text("Red fox")
    tokenizer = Tokenizer.from_file(lens.bundle.tokenizer_path, text_length=16)
    ids = [tokenizer.bos_id, *tokenizer.encode("red fox"), tokenizer.eos_id]
    expected = weights["text_table"][ids].sum(axis=0) @ weights["text_projection"]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_many_texts_are_each_text(lens: Lens) -> None:
    texts = [f"text number {'abc'[i % 3] * (i % 9)}" for i in range(130)]
    table = lens.embed_texts(texts)
    assert table.shape == (130, lens.dim)
    np.testing.assert_allclose(table, [lens.embed_text(text) for text in texts], atol=1e-6)
    assert lens.embed_texts([]).shape == (0, lens.dim)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_batch_of_pictures_is_each_picture(lens: Lens, pictures: list[bytes], batch_size: int) -> None:
    vectors = list(lens.embed_images(pictures, batch_size=batch_size))
    np.testing.assert_allclose(vectors, [lens.embed_image(p) for p in pictures], atol=1e-6)


def test_embed_images_reads_no_further_than_the_batch_at_hand(lens: Lens, pictures: list[bytes]) -> None:
    taken: list[int] = []

    def source() -> Iterator[bytes]:
        for index, picture in enumerate(pictures):
            taken.append(index)
            yield picture

    results = lens.embed_images(source(), batch_size=4)
    next(results)
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_of_captions_is_each_caption(lens: Lens, pictures: list[bytes], beam: int) -> None:
    batched = list(lens.captions(pictures, beam=beam, batch_size=9))
    for picture, caption in zip(pictures, batched, strict=True):
        assert isinstance(caption, Caption)
        alone = lens.caption(picture, beam=beam)
        assert caption.token_ids == alone.token_ids
        assert caption.text == alone.text
        assert caption.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-5)
        assert caption.confidence == pytest.approx(alone.confidence, abs=1e-5)
    assert len({len(caption.token_ids) for caption in batched if isinstance(caption, Caption)}) > 2


def test_decoding_with_the_cache_agrees_with_decoding_from_scratch(
    lens: Lens, pictures: list[bytes], weights: Weights
) -> None:
    for picture in pictures:
        caption = lens.caption(picture)
        visual = _visual_tokens(preprocess(picture, lens.bundle.manifest.preprocess), weights)
        ids = [1]
        for token, logprob in zip(caption.token_ids, caption.token_logprobs, strict=True):
            table = _next_logprobs(visual, ids, weights)
            assert token == int(table.argmax())
            assert logprob == pytest.approx(table[token], abs=1e-4)
            ids.append(token)
        assert ids[-1] == 2 or len(ids) == 1 + 8


def test_a_beam_finds_captions_that_are_more_probable_than_greedy_on_average(lens: Lens, pictures: list[bytes]) -> None:
    def score(beam: int) -> float:
        found = [lens.caption(picture, beam=beam) for picture in pictures]
        return float(np.mean([sum(c.token_logprobs) / ((5 + len(c.token_ids)) / 6) ** 0.6 for c in found]))

    assert score(4) > score(1)


def test_a_caption_carries_its_text_similarity_and_confidence(lens: Lens, pictures: list[bytes]) -> None:
    said = 0
    for picture in pictures:
        caption = lens.caption(picture)
        tokenizer = Tokenizer.from_file(lens.bundle.tokenizer_path, text_length=16)
        assert caption.text == tokenizer.decode(caption.token_ids)
        cosine = float(lens.embed_image(picture) @ lens.embed_text(caption.text))
        assert caption.similarity == pytest.approx(cosine, abs=1e-5)
        assert 0 <= caption.confidence <= 1
        assert caption.source == "device"
        assert caption.model_version == lens.model_version
        if caption.text:
            said += 1
        else:
            assert caption.confidence == 0
    assert said > 30


def test_max_tokens_cuts_captions_off_and_never_exceeds_the_bundle(lens: Lens, pictures: list[bytes]) -> None:
    whole = lens.caption(pictures[0])
    assert lens.caption(pictures[0], max_tokens=3).token_ids == whole.token_ids[:3]
    assert lens.caption(pictures[0], max_tokens=10_000).token_ids == whole.token_ids


def test_describe_gives_what_embed_image_and_caption_give(lens: Lens, pictures: list[bytes]) -> None:
    both = lens.describe(pictures[1])
    assert isinstance(both, Description)
    np.testing.assert_array_equal(both.embedding, lens.embed_image(pictures[1]))
    assert both.caption == lens.caption(pictures[1])
    many = list(lens.descriptions(pictures, batch_size=11))
    assert [d.caption.token_ids for d in many if isinstance(d, Description)] == [
        lens.caption(p).token_ids for p in pictures
    ]


def test_every_kind_of_picture_gives_the_same_answer(lens: Lens, pictures: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(pictures[2])
    image = Image.open(io.BytesIO(pictures[2]))
    sources = [path, str(path), pictures[2], io.BytesIO(pictures[2]), image, np.array(image)]
    vectors = list(lens.embed_images(sources))
    np.testing.assert_array_equal(vectors, [vectors[0]] * len(sources))


def test_a_bad_picture_in_a_batch_is_refused_in_its_place(lens: Lens, pictures: list[bytes], tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    missing = tmp_path / "missing.png"
    batch = [pictures[0], text, pictures[1], missing, pictures[2]]
    for results in (
        list(lens.embed_images(batch, batch_size=2)),
        list(lens.captions(batch, batch_size=3)),
        list(lens.descriptions(batch)),
    ):
        assert [isinstance(result, Refusal) for result in results] == [False, True, False, True, False]
        first, second = (result for result in results if isinstance(result, Refusal))
        assert (first.index, first.source, first.error.kind) == (1, str(text), "unknown_type")
        assert (second.index, second.source, second.error.kind) == (3, str(missing), "missing")
    np.testing.assert_allclose(list(lens.embed_images(batch))[4], lens.embed_image(pictures[2]), atol=1e-6)


def test_a_batch_of_nothing_but_bad_pictures_is_all_refusals(lens: Lens) -> None:
    assert [type(result) for result in lens.captions([b"", b"x", b"y"], batch_size=2)] == [Refusal] * 3


def test_a_single_bad_picture_raises_its_error(lens: Lens, tmp_path: Path) -> None:
    for answer in (lens.embed_image, lens.caption, lens.describe):
        with pytest.raises(PictureError) as caught:
            answer(tmp_path)
        assert caught.value.kind == "not_a_file"


def test_events_say_what_happened_and_nothing_about_the_pictures(
    bundle_path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "very-private-name.png"
    path.write_bytes(pictures[0])
    sink = Recorder()
    lens = load(bundle_path, sink=sink)
    lens.embed_image(path)
    lens.embed_texts(["a private text", "another"])
    caption = lens.caption(path)
    list(lens.embed_images([path, tmp_path / "gone-private.png"]))
    list(lens.descriptions([path, path]))
    kinds = [type(event) for event in sink.events]
    assert kinds == [
        EngineLoaded,
        EmbeddingServed,
        EmbeddingServed,
        CaptionServed,
        PictureRefused,
        EmbeddingServed,
        EmbeddingServed,
        CaptionServed,
        CaptionServed,
    ]
    loaded, image, texts, captioned = sink.events[:4]
    assert isinstance(loaded, EngineLoaded)
    assert (loaded.engine, loaded.precision) == ("onnxruntime", "fp32")
    assert loaded.load_ms > 0
    assert isinstance(image, EmbeddingServed)
    assert (image.modality, image.batch_size) == ("image", 1)
    assert isinstance(texts, EmbeddingServed)
    assert (texts.modality, texts.batch_size) == ("text", 2)
    assert isinstance(captioned, CaptionServed)
    assert (captioned.source, captioned.tokens) == ("device", len(caption.token_ids))
    assert {event.model_version for event in sink.events} == {lens.model_version}
    written = json.dumps(msgspec.to_builtins(sink.events))
    assert "private" not in written
    assert caption.text not in written


def test_the_fallback_gets_the_file_as_it_is_and_its_answer_is_handed_out(
    bundle_path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(pictures[0])
    asked: list[tuple[bytes, Caption]] = []

    def fallback(picture: bytes, device_caption: Caption) -> Caption:
        asked.append((picture, device_caption))
        return msgspec.structs.replace(device_caption, text="from above", source="cloud", token_ids=())

    sink = Recorder()
    lens = load(bundle_path, sink=sink, fallback=fallback)
    answers = [
        lens.caption(path),
        *lens.captions([io.BytesIO(pictures[1]), b"broken"]),
        lens.describe(pictures[2]).caption,
    ]
    assert [answer.text for answer in answers if isinstance(answer, Caption)] == ["from above"] * 3
    assert [picture for picture, _ in asked] == pictures[:3]
    assert asked[0][1] == load(bundle_path).caption(path)
    served = [event for event in sink.events if isinstance(event, CaptionServed)]
    assert [event.source for event in served] == ["cloud"] * 3


def test_the_fallback_is_not_asked_about_pixels_or_embeddings(bundle_path: Path, pictures: list[bytes]) -> None:
    def fallback(picture: bytes, device_caption: Caption) -> Caption:
        raise AssertionError("there is no encoded file to send")

    lens = load(bundle_path, fallback=fallback)
    pixels = np.array(Image.open(io.BytesIO(pictures[0])))
    assert lens.caption(pixels).source == "device"
    lens.embed_image(pictures[0])


def test_a_refusal_names_the_file_with_a_fallback_too(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("no picture")
    lens = load(bundle_path, fallback=lambda picture, caption: caption)
    with pytest.raises(PictureError, match=str(path)):
        lens.caption(path)


def test_a_bundle_with_one_flipped_bit_is_refused(bundle_copy: Path) -> None:
    graph = next(bundle_copy.rglob("image_encoder.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(BundleTampered, match=r"image_encoder\.onnx"):
        load(bundle_copy)


def test_a_bundle_with_an_extra_or_a_missing_file_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "extra").write_text("")
    with pytest.raises(BundleTampered, match="extra"):
        load(bundle_copy)
    (bundle_copy / "extra").unlink()
    (bundle_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleMissing, match="tokenizer"):
        load(bundle_copy)


def test_a_bundle_that_lacks_a_graph_of_its_tasks_is_incomplete(rebuilt: Rebuilt) -> None:
    def change(manifest: Manifest) -> Manifest:
        graphs = tuple(graph for graph in manifest.graphs if graph.role != "text_encoder")
        return msgspec.structs.replace(manifest, graphs=graphs)

    with pytest.raises(BundleIncomplete, match="text_encoder"):
        load(rebuilt(change))


def test_a_bundle_without_captions_embeds_and_refuses_to_caption(rebuilt: Rebuilt, pictures: list[bytes]) -> None:
    lens = load(rebuilt(lambda m: msgspec.structs.replace(m, tasks=("embed",), caption=None)))
    assert lens.embed_image(pictures[0]).shape == (lens.dim,)
    with pytest.raises(BundleIncomplete, match="task caption"):
        lens.captions(pictures)


def test_a_bundle_without_text_captions_without_similarity(rebuilt: Rebuilt, pictures: list[bytes]) -> None:
    lens = load(rebuilt(lambda m: msgspec.structs.replace(m, tasks=("caption",))))
    caption = lens.caption(pictures[0])
    assert caption.similarity is None
    assert 0 < caption.confidence < 1
    with pytest.raises(BundleIncomplete, match="text_encoder"):
        lens.embed_text("a")


def test_the_confidence_of_the_manifest_is_used(rebuilt: Rebuilt, pictures: list[bytes]) -> None:
    spec = ConfidenceSpec(bias=0.0, weights={"similarity": 2.0}, fitted_on=10)
    lens = load(rebuilt(lambda m: msgspec.structs.replace(m, confidence=spec)))
    caption = lens.caption(pictures[3])
    assert caption.similarity is not None
    assert caption.confidence == pytest.approx(1 / (1 + np.exp(-2 * caption.similarity)))


def test_a_confidence_with_an_unknown_feature_is_refused(rebuilt: Rebuilt) -> None:
    spec = ConfidenceSpec(bias=0.0, weights={"mood": 2.0}, fitted_on=10)
    with pytest.raises(BundleSchemaError, match="mood"):
        load(rebuilt(lambda m: msgspec.structs.replace(m, confidence=spec)))


def test_a_precision_that_is_asked_for_is_taken(bundle_path: Path) -> None:
    assert load(bundle_path).precision == "fp32"
    assert load(bundle_path, precision="int8").precision == "int8"


def test_an_unknown_engine_is_refused_with_the_known_ones(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match="onnxruntime, executorch"):
        load(bundle_path, engine="abacus")


@pytest.mark.parametrize("name", ["beam", "batch_size", "max_tokens"])
def test_numbers_below_one_are_refused(lens: Lens, pictures: list[bytes], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1"):
        list(lens.captions(pictures, **{name: 0}))
    with pytest.raises(ValueError, match="threads"):
        load(lens.bundle.root, threads=0)


def test_the_bundle_of_a_lens_is_the_verified_one(lens: Lens, bundle_path: Path) -> None:
    assert lens.bundle == load_bundle(bundle_path)


def test_pictures_of_unknown_origin_are_decoded_elsewhere_with_the_same_answers(
    lens: Lens, bundle_path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0][: len(pictures[0]) // 2])
    careful = load(bundle_path, threads=2, decode="worker")
    try:
        expected = list(lens.embed_images(pictures))
        found = list(careful.embed_images([*pictures, broken]))
        for own, other in zip(found[:-1], expected, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-6)
        assert isinstance(found[-1], Refusal)
        assert careful.caption(pictures[1]).token_ids == lens.caption(pictures[1]).token_ids
    finally:
        careful.close()
    with pytest.raises(EngineError, match="closed"):
        careful.embed_image(pictures[0])
    with pytest.raises(ValueError, match="decode"):
        load(bundle_path, decode="elsewhere")  # type: ignore[arg-type]
