"""A foreign tokenizer in the bundle's `tokenizer.json`: the same ids, and what differs is named."""

import json
import random

import open_clip
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models as backends

from pocketlens.core.errors import ExportError
from pocketlens.core.tokenizer import BOS, EOS, PAD, Tokenizer
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.export.sources.cleaning import cleaning_steps
from pocketlens.export.sources.clip_bpe import clip_bpe
from pocketlens.export.sources.vocabulary import Layout, bundle_tokenizer

SENTENCES = (
    "A photo of a CAT!!",
    "it's don't I'll they're we've he'd I'm",
    "  many   blanks\t and\nlines ",
    "\u201ccurled\u201d \u2018quotes\u2019 don\u2019t",
    "\ufb01ne \ufb02ow, \u0149 \u0132sselmeer",
    "na\u00efve caf\u00e9, cafe\u0301, Stra\u00dfe, \u00c5ngstr\u00f6m",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4, \u0440\u0443\u0441\u0441\u043a\u0438\u0439, \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\U0001f642\U0001f389 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "12345 1st 3.14 1\u00bd +49 (0)30",
    "a" * 300,
    "",
    "foo_bar-baz @home #tag $5 100% ^ ~ `",
    "<|endoftext|> <|startoftext|>",
    "x\x1cy \ufeffz",
)


@pytest.fixture(scope="module")
def clip() -> tuple[open_clip.SimpleTokenizer, Tokenizer]:
    own = open_clip.SimpleTokenizer()
    source, layout = clip_bpe(own)
    return own, bundle_tokenizer(source, layout, text_length=77, clean="lower")[1]


def _differ(clip: tuple[open_clip.SimpleTokenizer, Tokenizer], texts: list[str]) -> list[str]:
    own, ours = clip
    expected = own(texts).tolist()
    found = ours.encode_batch(texts)
    found[found == ours.pad_id] = 0  # what `TextGraph` does
    return [text for text, a, b in zip(texts, expected, found.tolist(), strict=True) if a != b]


def test_clips_tokenizer_gives_open_clips_ids(clip: tuple[open_clip.SimpleTokenizer, Tokenizer]) -> None:
    texts = [*SENTENCES, *(text for seed in range(60) for text in captions(sample_scene(seed, split="train")))]
    assert len(texts) > 300
    assert _differ(clip, texts) == []


@pytest.mark.parametrize(
    ("first", "last"), [(0x20, 0x7F), (0x410, 0x450), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F650)]
)
def test_clips_tokenizer_gives_open_clips_ids_for_random_letters(
    clip: tuple[open_clip.SimpleTokenizer, Tokenizer], first: int, last: int
) -> None:
    rng = random.Random(first)
    # "&" may start an HTML entity, which only open_clip resolves
    letters = [chr(code) for code in range(first, last) if chr(code) != "&"]
    texts = ["".join(rng.choice(letters) for _ in range(20)) for _ in range(400)]
    assert _differ(clip, texts) == []


@pytest.mark.parametrize(
    "text",
    ["Fish &amp; chips", "\uff26\uff35\uff2c\uff2c", "\u03a3\u0391\u03a3", "<end_of_text>", "<eos>", "caf\u00c3\u00a9"],
)
def test_what_differs_from_open_clip(clip: tuple[open_clip.SimpleTokenizer, Tokenizer], text: str) -> None:
    """HTML, full width, the Greek final sigma, typed special tokens, broken encodings: docs/direct-export.md."""
    assert _differ(clip, [text]) == [text]


def _words(names: list[str], *, special: list[int]) -> str:
    added = [{"id": i, "content": names[i], "special": True} | _flags() for i in special]
    backend = json.loads(Backend(backends.WordLevel({name: i for i, name in enumerate(names)}, unk_token="u")).to_str())
    return json.dumps(backend | {"added_tokens": added})


def _flags() -> dict[str, bool]:
    return {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def test_special_tokens_are_renamed_and_keep_their_ids() -> None:
    source = _words(["[P]", "u", "[S]", "[E]", "dog"], special=[0, 2, 3])
    text, tokenizer = bundle_tokenizer(source, Layout(pad_id=0, bos_id=2, eos_id=3), text_length=5)
    assert tokenizer.encode_batch(["dog"]).tolist() == [[2, 4, 3, 0, 0]]
    assert tokenizer.vocab_size == 5
    assert [entry["content"] for entry in json.loads(text)["added_tokens"]] == [PAD, BOS, EOS]


def test_what_is_missing_gets_an_id_behind_the_table() -> None:
    source = _words(["!", "u", "</s>", "dog"], special=[2])
    _, tokenizer = bundle_tokenizer(source, Layout(pad_id=0, bos_id=None, eos_id=2), text_length=5)
    assert tokenizer.encode_batch(["dog"]).tolist() == [[4, 3, 2, 5, 5]]


def test_a_first_token_just_behind_the_vocabulary_is_added() -> None:
    source = _words(["[P]", "u", "[E]", "dog"], special=[0, 2])
    _, tokenizer = bundle_tokenizer(source, Layout(pad_id=0, bos_id=4, eos_id=2), text_length=4)
    assert tokenizer.encode_batch(["dog"]).tolist() == [[4, 3, 2, 0]]


@pytest.mark.parametrize("layout", [Layout(pad_id=0, bos_id=9, eos_id=2), Layout(pad_id=0, bos_id=1, eos_id=3)])
def test_a_vocabulary_that_does_not_fit_is_a_typed_error(layout: Layout) -> None:
    with pytest.raises(ExportError, match="the model's tokenizer"):
        bundle_tokenizer(_words(["p", "u", EOS, "dog"], special=[2]), layout, text_length=4)


def test_an_unknown_cleaning_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        cleaning_steps("html")  # type: ignore[arg-type]
