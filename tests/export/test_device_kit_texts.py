"""The device kit's tokenizer in C against `pocketlens.core.tokenizer`, under sanitizers and on aarch64."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.export.device_kit.unicode_tables import CODE_POINTS, unicode_header
from tests.device_kit.cases import TEXT_LENGTH, strings, tokenizer_files
from tests.device_kit.toolchain import HEADERS, SOURCES, Harness, build, program

SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCE = SOURCES / "harness.c"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    return tokenizer_files(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    folder = tmp_path_factory.mktemp("sanitized")
    return Harness([str(build("gcc", SOURCE, folder / "harness", *SANITIZED))], folder)


def all_equal(harness: Harness, tokenizer: tuple[Tokenizer, Path], texts: Sequence[str]) -> None:
    exact, flat = tokenizer
    found = harness.texts(flat, [text.encode() for text in texts], text_length=TEXT_LENGTH)
    rows = exact.encode_batch(texts).tolist()
    for text, answer, row in zip(texts, found, rows, strict=True):
        assert answer.status == 0, ascii(text)
        assert answer.ids == exact.encode(text), ascii(text)
        assert answer.row == row, ascii(text)


def test_the_tokenizer_merges_beyond_ascii(tokenizer: tuple[Tokenizer, Path]) -> None:
    exact, _ = tokenizer
    assert len(exact.encode("고양이")) < len(" 고양이".encode())
    assert len(exact.encode("aaaaaaaa")) < 8


def test_ten_thousand_strings_equal_python_under_sanitizers(
    sanitized: Harness, tokenizer: tuple[Tokenizer, Path]
) -> None:
    texts = strings(10_000)
    assert len(set(texts)) > 9_000
    all_equal(sanitized, tokenizer, texts)


def code_points_equal(harness: Harness, tokenizer: tuple[Tokenizer, Path], codes: Sequence[int]) -> None:
    # Alone, after a letter and before a number: class, lower case and canonical form of each show.
    pieces = [f" {chr(code)} a{chr(code)}1" for code in codes]
    all_equal(harness, tokenizer, ["".join(pieces[at : at + 256]) for at in range(0, len(pieces), 256)])


def test_every_code_point_with_a_property_equals_python(sanitized: Harness, tokenizer: tuple[Tokenizer, Path]) -> None:
    # Every tenth ideograph and syllable will do here: they are alike, and the slow test takes all.
    alike = [*range(0x3400, 0xD7A4), *range(0x17000, 0x18D00), *range(0x20000, 0x33480)]
    below = (code for code in CODE_POINTS if code < 0x20000 or 0xE0000 <= code < 0xE0200)
    code_points_equal(sanitized, tokenizer, sorted({*below} - {*alike} | {*alike[::10]} & {*CODE_POINTS}))


@pytest.mark.slow
def test_every_code_point_equals_python(sanitized: Harness, tokenizer: tuple[Tokenizer, Path]) -> None:
    assert len(CODE_POINTS) == 1_112_064
    code_points_equal(sanitized, tokenizer, CODE_POINTS)


def test_every_canonical_decomposition_equals_python(sanitized: Harness, tokenizer: tuple[Tokenizer, Path]) -> None:
    forms = {text for code in CODE_POINTS if (text := unicodedata.normalize("NFD", chr(code))) != chr(code)}
    assert len(forms) > 12_000
    # In both orders of the last two marks, and with a mark between the base and what it composes with.
    texts = sorted(
        forms | {text[:-2] + text[:-3:-1] for text in forms} | {text[0] + "\u0323" + text[1:] for text in forms}
    )
    all_equal(sanitized, tokenizer, texts)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 20_000,
        "\u0301\u0323" * 5_000,
        "e" + "\u0315\u0300\u05ae\u0323\u0345" * 3_000,
        " " * 9_999 + "x",
        "\U0001d160" * 2_000,
    ],
    ids=["one word", "marks", "five classes", "white space", "threefold"],
)
def test_long_input_equals_python(sanitized: Harness, tokenizer: tuple[Tokenizer, Path], text: str) -> None:
    all_equal(sanitized, tokenizer, [text])


@pytest.mark.parametrize(
    "text",
    [b"\x80", b"a\xff", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xb0\x80",
     b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"ok \xe2\x82", b"\xf0\x9f\x90", b"\xc3"],
)  # fmt: skip
def test_text_that_is_not_utf8_is_refused(sanitized: Harness, tokenizer: tuple[Tokenizer, Path], text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        text.decode()
    assert sanitized.texts(tokenizer[1], [text], text_length=TEXT_LENGTH)[0].status == 6


def test_the_edges_of_utf8_are_taken(sanitized: Harness, tokenizer: tuple[Tokenizer, Path]) -> None:
    all_equal(sanitized, tokenizer, list("\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"))


def test_decoding_equals_python(sanitized: Harness, tokenizer: tuple[Tokenizer, Path]) -> None:
    exact, flat = tokenizer
    rng = np.random.default_rng(0)
    # Ids at random break UTF-8 sequences apart in every way; beyond the vocabulary they are left out.
    rows = [rng.integers(0, exact.vocab_size + 5, rng.integers(0, 40)).tolist() for _ in range(3_000)]
    rows += [rng.integers(0, 260, rng.integers(0, 12)).tolist() for _ in range(3_000)]
    rows += [exact.encode(text) for text in strings(2_000)]
    assert sanitized.decode(flat, rows) == [exact.decode(row) for row in rows]


def test_every_bit_is_equal_on_aarch64(tokenizer: tuple[Tokenizer, Path], tmp_path: Path) -> None:
    emulator = program("qemu-aarch64-static")
    built = build("aarch64-linux-gnu-gcc", SOURCE, tmp_path / "harness", "-O3", "-static")
    all_equal(Harness([emulator, str(built)], tmp_path), tokenizer, strings(10_000))


@pytest.mark.slow
def test_the_tables_are_those_of_the_installed_library() -> None:
    # After an upgrade of tokenizers: python -m pocketlens.export.device_kit.unicode_tables
    assert (HEADERS[1] / "pocketlens_unicode.h").read_text(encoding="utf-8") == unicode_header()
