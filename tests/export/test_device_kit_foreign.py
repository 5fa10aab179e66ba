"""The device kit's tokenizer for foreign models, CLIP's BPE and BERT's WordPiece: C against the library."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from pocketlens.core.errors import ExportError
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.export.device_kit.unicode_tables import CODE_POINTS
from tests.device_kit.cases import TEXT_LENGTH, flat_file, foreign_tokenizer, strings
from tests.device_kit.toolchain import SOURCES, Harness, build, program

SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCE = SOURCES / "harness.c"
KINDS: Final = ("clip", "canonicalize", "transformers", "bert", "cased")
SOME: Final = tuple(pytest.param(k, marks=pytest.mark.slow) if k in ("canonicalize", "cased") else k for k in KINDS)
"""The other two differ from these in one step of cleaning each."""

# What the five do something special about.
WORDS: Final = (
    "</w>",
    "<|startoftext|>",
    "<|endoftext|>",
    "!<|endoftext|>!",
    "[UNK]",
    "[MASK]",
    "##ing",
    "don't.",
    "\ufb03",
    "\u0149",
    "\u01c5",
    "\u201cA\u201d\u2019s",
    "_",
    "\u732b\u72ac",
    "\u00ad",
    "\u200b",
    "\ufffd",
    "\x1c",
    "\u2260",
    "\u00a1",
    "$",
    "\ud55c\uad6d",
    "unbelievablyfarawaycats",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> Callable[[str], tuple[Tokenizer, Path]]:
    @cache
    def made(kind: str) -> tuple[Tokenizer, Path]:
        tokenizer, path = foreign_tokenizer(kind, folder)
        return tokenizer, flat_file(tokenizer, path)

    return made


@pytest.fixture(scope="module")
def sanitized(folder: Path) -> Harness:
    return Harness([str(build("gcc", SOURCE, folder / "harness", *SANITIZED))], folder)


def all_equal(harness: Harness, tokenizer: tuple[Tokenizer, Path], texts: Sequence[str]) -> None:
    exact, flat = tokenizer
    found = harness.texts(flat, [text.encode() for text in texts], text_length=TEXT_LENGTH)
    expected = exact.encode_batch(texts).tolist()
    for text, answer, row in zip(texts, found, expected, strict=True):
        assert answer.status == 0, ascii(text)
        assert answer.ids == exact.encode(text), ascii(text)
        assert answer.row == row, ascii(text)


@pytest.mark.parametrize("kind", SOME)
def test_ten_thousand_strings_equal_the_library_under_sanitizers(
    sanitized: Harness, tokenizers: Callable[[str], tuple[Tokenizer, Path]], kind: str
) -> None:
    texts = strings(10_000, WORDS)
    assert len(set(texts)) > 9_000
    all_equal(sanitized, tokenizers(kind), [*WORDS, *texts])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_equals_the_library(
    sanitized: Harness, tokenizers: Callable[[str], tuple[Tokenizer, Path]], kind: str
) -> None:
    pieces = [f" {chr(code)} a{chr(code)}1" for code in CODE_POINTS]
    all_equal(sanitized, tokenizers(kind), ["".join(pieces[at : at + 256]) for at in range(0, len(pieces), 256)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["a" * 20_000, "\u0301\u0323" * 5_000, "!" * 9_999 + "x", "\U0001d160" * 2_000, "\ufa6c" * 2_000, "\u0149" * 3_000],
    ids=["one word", "marks", "punctuation", "threefold", "ideographs", "ligatures"],
)
def test_long_input_equals_the_library(
    sanitized: Harness, tokenizers: Callable[[str], tuple[Tokenizer, Path]], kind: str, text: str
) -> None:
    all_equal(sanitized, tokenizers(kind), [text])


@pytest.mark.parametrize("kind", SOME)
def test_decoding_equals_the_library(
    sanitized: Harness, tokenizers: Callable[[str], tuple[Tokenizer, Path]], kind: str
) -> None:
    exact, flat = tokenizers(kind)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, exact.vocab_size + 5, rng.integers(0, 40)).tolist() for _ in range(3_000)]
    rows += [rng.integers(0, 540, rng.integers(0, 12)).tolist() for _ in range(3_000)]
    rows += [exact.encode(text) for text in (*WORDS, "<</w></w>", "a </ w>", *strings(2_000, WORDS))]
    assert sanitized.decode(flat, rows) == [exact.decode(row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_outgrows_the_stated_workspace(
    tokenizers: Callable[[str], tuple[Tokenizer, Path]], folder: Path, kind: str
) -> None:
    # A text of n bytes has room for 3 n. BERT's pre-tokenizer parts marks by a blank on both sides.
    steps = json.loads((folder / f"{tokenizers(kind)[1].stem}.json").read_text(encoding="utf-8"))
    marks = punctuation() if steps["pre_tokenizer"]["type"] == "BertPreTokenizer" else set()
    backend = Backend.from_str(json.dumps(steps))
    for code in CODE_POINTS[:0x3000] + CODE_POINTS[0x3000::13]:
        text = backend.normalizer.normalize_str(chr(code))
        assert len(text.encode()) + 2 * sum(letter in marks for letter in text) <= 3 * len(chr(code).encode()), code


def punctuation() -> set[str]:
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("".join(f"a{chr(code)}" for code in CODE_POINTS))
    return {text for text, _ in pieces if len(text) == 1 and text != "a"}


@pytest.mark.parametrize("kind", ["clip", "transformers", "bert"])
def test_every_bit_is_equal_on_aarch64(
    tokenizers: Callable[[str], tuple[Tokenizer, Path]], tmp_path: Path, kind: str
) -> None:
    emulator = program("qemu-aarch64-static")
    built = build("aarch64-linux-gnu-gcc", SOURCE, tmp_path / "harness", "-O3", "-static")
    all_equal(Harness([emulator, str(built)], tmp_path), tokenizers(kind), strings(2_000, WORDS))


def _edit(kind: str, folder: Path, change: Callable[[dict[str, Any]], object], out: Path) -> tuple[Tokenizer, Path]:
    tokenizer, path = foreign_tokenizer(kind, folder)
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    edited = out / "tokenizer.json"
    edited.write_text(json.dumps(document), encoding="utf-8")
    return tokenizer, edited


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        ("transformers", lambda d: d["model"].update(end_of_word_suffix="@@"), "@@"),
        ("transformers", lambda d: d["model"]["vocab"].pop("~</w>"), "1 missing"),
        ("transformers", lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(invert=False), "startoftext"),
        ("transformers", lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="x"), "x"),
        ("transformers", lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(use_regex=False), "startoftext"),
        ("transformers", lambda d: d["normalizer"]["normalizers"][1]["pattern"].update(Regex="ab+"), "ab+"),
        ("transformers", lambda d: d["normalizer"]["normalizers"][1]["pattern"].update(Regex="[^a]"), "[^a]"),
        ("transformers", lambda d: d["normalizer"]["normalizers"][1].update(content="123456789"), "123456789"),
        ("transformers", lambda d: d.update(decoder={"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
        ("bert", lambda d: d["model"].update(continuing_subword_prefix="@"), "@"),
        ("bert", lambda d: d["model"].update(unk_token="nowhere"), "nowhere"),
        ("bert", lambda d: d["model"].update(max_input_chars_per_word=0), "words of 0 letters"),
        ("bert", lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        ("bert", lambda d: d.update(decoder={"type": "ByteLevel"}), "ByteLevel"),
        ("bert", lambda d: d["model"]["vocab"].update({"do n't": 700}), "do n't"),
        ("bert", lambda d: d.update(normalizer={"type": "NFKC"}), "NFKC"),
        ("bert", lambda d: d["model"].update(type="WordLevel"), "WordLevel"),
    ],
)
def test_what_the_header_does_not_implement_is_refused_by_name(
    folder: Path, tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    tokenizer, path = _edit(kind, folder, change, tmp_path)
    with pytest.raises(ExportError) as caught:
        flat_file(tokenizer, path)
    assert found in caught.value.found


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    Backend(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(path))
    with pytest.raises(ExportError) as caught:
        flat_file(foreign_tokenizer("bert", tmp_path)[0], path)
    assert caught.value.found == "Unigram"


@pytest.mark.parametrize("pattern", ["x", "[a-c]", r"[\x41-\x43z]+", r"\s", r"[\s\u2028-]+", r"[\-\]a]"])
def test_a_set_of_letters_is_the_librarys(folder: Path, tmp_path: Path, sanitized: Harness, pattern: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["normalizer"]["normalizers"][1] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "Q"}

    _, path = _edit("transformers", folder, change, tmp_path)
    tokenizer = Tokenizer.from_file(path, text_length=TEXT_LENGTH)
    all_equal(sanitized, (tokenizer, flat_file(tokenizer, path)), ["abcdABCDzZ--]] \t\u2028\n\\", *strings(300)])
