r"""Normalizers of `tokenizer.json` as the steps that `pocketlens_normalizer.h` runs.

A step is uint32 words: what, argument, C, R, C code points, R ranges (first, last). What BERT's normalizer and
pre-tokenizer mean by control characters, ideographs, marks and punctuation, and what `\s` and `Strip` mean by blanks,
the `tokenizers` library is asked for every code point, for the reason that `unicode_tables` gives.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from tokenizers import Regex, normalizers, pre_tokenizers

from pocketlens.export.device_kit.tokenizer_json import unsupported
from pocketlens.export.device_kit.unicode_tables import CODE_POINTS

__all__ = ["MOST_CONTENT", "normalizer_words", "punctuation_words"]

MOST_CONTENT: Final = 8
"""A replacement has at most this many code points."""

_NFC, _NFD, _LOWER, _REPLACE, _STRIP, _AROUND = range(1, 7)
_LEFT, _RIGHT = 1, 2
_BETWEEN: Final = "\u25c6"  # stands between code points that the library is asked about; nothing happens to it
_BLANK: Final = r"\s"
_ITEM: Final = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|(\\s)|\\([^\w\s])|([^\\])", re.DOTALL)
_META: Final = set(".^$*+?{}[]|()\\")

Words = list[int]
_Part = Literal["clean_text", "handle_chinese_chars", "strip_accents"]
"""One of the things that BERT's normalizer does, by the name of its option."""


def normalizer_words(path: Path, steps: Iterable[Mapping[str, Any]]) -> Words:
    """Return the steps of `tokenizer.json` as words; `path` names the file in messages.

    Raises:
        ExportError: a step that the header does not implement.
    """
    words: Words = []
    for step in steps:
        writer = _WRITERS.get(str(step["type"]))
        if writer is None:
            raise unsupported(path, f"normalizers of {', '.join(_WRITERS)}", str(step["type"]))
        words += writer(path, step)
    return words


def punctuation_words() -> Words:
    """Return BERT's pre-tokenizer, less its cut at blanks: punctuation marks become words of their own."""
    return _step(_AROUND, ranges=_punctuation(), content=" ")


def _step(what: int, argument: int = 0, *, content: str = "", ranges: Sequence[tuple[int, int]] = ()) -> Words:
    flat = [code for pair in ranges for code in pair]
    return [what, argument, len(content), len(ranges), *map(ord, content), *flat]


def _replace(path: Path, step: Mapping[str, Any]) -> Words:
    pattern, content = dict(step["pattern"]), str(step["content"])
    source = str(pattern.get("Regex", pattern.get("String", "")))
    is_run = "Regex" in pattern and source.endswith("+") and len(source) > 1
    if "String" in pattern:
        found = {ord(source)} if len(source) == 1 else None
    else:
        found = _letters(source.removesuffix("+") if is_run else source)
    if found is None or len(content) > MOST_CONTENT:
        raise unsupported(path, "replaced single characters or sets of them, by at most 8", f"{source!r}: {content!r}")
    return _step(_REPLACE, int(is_run), content=content, ranges=_ranges(found))


def _letters(pattern: str) -> set[int] | None:
    r"""Return the code points of `x`, `\s` or `[…]`; `None` for any other pattern."""
    if len(pattern) == 1:
        return None if pattern in _META else {ord(pattern)}
    if pattern.startswith("[") and pattern.endswith("]") and len(pattern) > 2:
        inner = pattern[1:-1]
        if inner[0] == "^" or "[" in inner or "&&" in inner:
            return None
    elif pattern == _BLANK:
        inner = pattern
    else:
        return None
    items: list[set[int]] = []
    at, is_range = 0, False
    while at < len(inner):
        match = _ITEM.match(inner, at)
        if match is None:
            return None
        at = match.end()
        if match[0] == "-" and items and at < len(inner) and not is_range:
            is_range = True
            continue
        code = int(match[1] or match[2], 16) if match[1] or match[2] else None
        item = set(_blanks()) if match[3] else {code if code is not None else ord(match[4] or match[5])}
        if is_range:
            first, last = items.pop(), item
            if len(first) != 1 or len(last) != 1 or min(first) > min(last):
                return None
            item, is_range = set(range(min(first), min(last) + 1)), False
        items.append(item)
    return None if is_range else set().union(*items)


def _strip(path: Path, step: Mapping[str, Any]) -> Words:
    sides = (_LEFT if step["strip_left"] else 0) | (_RIGHT if step["strip_right"] else 0)
    return _step(_STRIP, sides, ranges=_ranges(_stripped()))


def _bert(path: Path, step: Mapping[str, Any]) -> Words:
    """Clean, spaces around ideographs, no accents, lower case: in this order (tokenizers, normalizers/bert.rs)."""
    words: Words = []
    if step["clean_text"]:
        words += _step(_REPLACE, ranges=_ranges(_changed("clean_text", "")))
        words += _step(_REPLACE, content=" ", ranges=_ranges(_changed("clean_text", " ")))
    if step["handle_chinese_chars"]:
        words += _step(_AROUND, content=" ", ranges=_ranges(_changed("handle_chinese_chars", None)))
    accents = step["strip_accents"]
    if step["lowercase"] if accents is None else accents:
        words += _step(_NFD) + _step(_REPLACE, ranges=_ranges(_changed("strip_accents", "")))
    return words + (_step(_LOWER) if step["lowercase"] else [])


_WRITERS: Final[dict[str, Callable[[Path, Mapping[str, Any]], Words]]] = {
    "NFC": lambda path, step: _step(_NFC),
    "NFD": lambda path, step: _step(_NFD),
    "Lowercase": lambda path, step: _step(_LOWER),
    "Replace": _replace,
    "Strip": _strip,
    "BertNormalizer": _bert,
}


@cache
def _answers(part: _Part) -> dict[int, str]:
    """Return what one part of BERT's normalizer makes of each code point that it changes."""
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    normalize = normalizers.BertNormalizer(**{**off, part: True}).normalize_str
    codes = [code for code in CODE_POINTS if chr(code) != _BETWEEN]
    texts = normalize(_BETWEEN.join(map(chr, codes))).split(_BETWEEN)
    return {code: text for code, text in zip(codes, texts, strict=True) if text != chr(code)}


def _changed(part: _Part, into: str | None) -> set[int]:
    """Return the code points that become `into`; `None`: that get a space on both sides."""
    return {code for code, text in _answers(part).items() if text == (f" {chr(code)} " if into is None else into)}


@cache
def _blanks() -> frozenset[int]:
    split = pre_tokenizers.Split(Regex(_BLANK), "removed", invert=True)
    return frozenset(ord(text) for text, _ in split.pre_tokenize_str("".join(map(chr, CODE_POINTS))))


@cache
def _stripped() -> frozenset[int]:
    strip = normalizers.Strip().normalize_str
    return frozenset(code for code in CODE_POINTS if strip(chr(code)) == "")


@cache
def _punctuation() -> tuple[tuple[int, int], ...]:
    # Between letters a mark makes three words, a blank two, anything else one.
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("".join(f"a{chr(code)}" for code in CODE_POINTS))
    alone = {ord(text) for text, _ in pieces if len(text) == 1}
    return tuple(_ranges(code for code in alone if code != ord("a")))


def _ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs
