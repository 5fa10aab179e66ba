r"""The Unicode tables of the device kit, as the `tokenizers` library behaves, written as C.

`tokenizers` mixes three versions of Unicode: one for NFC, one for lower case, one for `\p{L}`, `\p{N}` and `\s`.
None of them is that of Python's `unicodedata`. So the library itself is asked, for every code point, and the answers
are compressed. What is written is checked in; a test asks again.

Run after an upgrade of `tokenizers`, from the root of the repository:
python -m pocketlens.export.device_kit.unicode_tables > export/device_kit/c/pocketlens_unicode.h
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from pocketlens.core.errors import ExportError

__all__ = ["CODE_POINTS", "unicode_header"]

CODE_POINTS: Final = tuple(code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
"""Every code point that text can hold: all but the surrogates."""

_HANGUL: Final = range(0xAC00, 0xAC00 + 11172)
_DOTTED_I: Final = 0x130
_BETWEEN: Final = "\0<\0"
# One mark of every combining class, all older than any Unicode version in use: what they are swapped with tells the
# class of another mark (the Unicode Standard, section 3.11, canonical ordering).
_RULERS: Final = {
    1: 0x334, 7: 0x93C, 8: 0x3099, 9: 0x94D, 10: 0x5B0, 11: 0x5B1, 12: 0x5B2, 13: 0x5B3, 14: 0x5B4, 15: 0x5B5,
    16: 0x5B6, 17: 0x5B7, 18: 0x5B8, 19: 0x5B9, 20: 0x5BB, 21: 0x5BC, 22: 0x5BD, 23: 0x5BF, 24: 0x5C1, 25: 0x5C2,
    26: 0xFB1E, 27: 0x64B, 28: 0x64C, 29: 0x64D, 30: 0x64E, 31: 0x64F, 32: 0x650, 33: 0x651, 34: 0x652, 35: 0x670,
    36: 0x711, 84: 0xC55, 91: 0xC56, 103: 0xE38, 107: 0xE48, 118: 0xEB8, 122: 0xEC8, 129: 0xF71, 130: 0xF72,
    132: 0xF74, 202: 0x321, 214: 0x1DCE, 216: 0x31B, 218: 0x302A, 220: 0x316, 222: 0x59A, 224: 0x302E, 226: 0x1D16D,
    228: 0x5AE, 230: 0x301, 232: 0x315, 233: 0x35C, 234: 0x35D, 240: 0x345,
}  # fmt: skip


def unicode_header() -> str:
    """Return the text of `pocketlens_unicode.h` for the installed `tokenizers`; it takes some seconds.

    Raises:
        ExportError: the library does something that the tables cannot express.
    """
    changed = _changed(normalizers.NFD().normalize_str)
    decompositions = {code: text for code, text in changed.items() if code not in _HANGUL}
    combining = _combining_classes()
    offsets, parts = _pool(decompositions.values())
    tables: dict[str, tuple[str, int, list[int]]] = {
        "class": ("RUNS", 1, _class_runs()),
        "lower": ("RUNS", 3, _lower_runs(_changed(normalizers.Lowercase().normalize_str))),
        "combining": ("RUNS", 2, _combining_runs(combining)),
        "decompose": (
            "ROWS",
            2,
            [n for code, text in decompositions.items() for n in (code, offsets[text] << 3 | len(text))],
        ),
        "compose": ("ROWS", 3, _compositions(decompositions)),
        "parts": ("WORDS", 1, parts),
    }
    return _HEADER.format(
        version=tokenizers.__version__,
        tables="\n".join(_table(name, *table) for name, table in tables.items()),
    )


def _changed(normalize: Callable[[str], str]) -> dict[int, str]:
    """Return what becomes of each code point that does not stay what it is."""
    texts = zip(CODE_POINTS, _each(normalize, map(chr, CODE_POINTS)), strict=True)
    return {code: text for code, text in texts if text != chr(code)}


def _each(normalize: Callable[[str], str], texts: Iterable[str]) -> list[str]:
    """Return `normalize` of each text, asked for in one call: nothing acts across a NUL."""
    return normalize(_BETWEEN.join(texts)).split(_BETWEEN)


def _class_runs() -> list[int]:
    everything = "".join(map(chr, CODE_POINTS))
    classes = dict.fromkeys(CODE_POINTS, 0)
    for number, pattern in enumerate((r"\p{L}", r"\p{N}", r"\s"), start=1):
        matches = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(everything)
        classes.update((ord(text), number) for text, _ in matches)
    runs = [classes[0]]
    for before, code in pairwise(CODE_POINTS):
        if classes[code] != classes[before]:
            runs.append(code << 2 | classes[code])
    return runs


def _lower_runs(lower: Mapping[int, str]) -> list[int]:
    """Return first, last << 8 | step, difference for runs of code points that move equally far."""
    if lower.get(_DOTTED_I) != "i\u0307" or any(len(text) > 1 for code, text in lower.items() if code != _DOTTED_I):
        raise _unexpected("one code point in lower case for all but U+0130")
    moves = [(code, ord(text) - code) for code, text in lower.items() if code != _DOTTED_I]
    runs: list[list[int]] = []  # first, last, step, difference
    for code, difference in moves:
        run = runs[-1] if runs else None
        if run is not None and run[3] == difference:
            step = code - run[1]
            if run[0] == run[1] and step <= 2:
                run[1:3] = code, step
                continue
            if step == run[2]:
                run[1] = code
                continue
        runs.append([code, code, 1, difference])
    return [n for first, last, step, move in runs for n in (first, last << 8 | step, move % 2**32)]


def _combining_classes() -> dict[int, int]:
    """Return the class of every code point that is no starter."""
    order = normalizers.NFD().normalize_str
    lowest, highest = chr(_RULERS[1]), chr(_RULERS[240])
    # A mark of class 2 or more gives way to class 1; one of class 1 goes before class 240.
    give_way = _each(order, (chr(code) + lowest for code in CODE_POINTS))
    go_before = _each(order, (highest + chr(code) for code in CODE_POINTS))
    marks = [
        chr(code)
        for code, low, high in zip(CODE_POINTS, give_way, go_before, strict=True)
        if low == lowest + chr(code) or high == chr(code) + highest
    ]
    return {ord(mark): _class_of(order, mark) for mark in marks}


def _class_of(order: Callable[[str], str], mark: str) -> int:
    for number, code in _RULERS.items():
        ruler = chr(code)
        if order(mark + ruler) == mark + ruler and order(ruler + mark) == ruler + mark:
            return number
    raise _unexpected(f"a known combining class for U+{ord(mark):04X}")


def _combining_runs(classes: Mapping[int, int]) -> list[int]:
    runs: list[list[int]] = []  # first, last, class
    for code, number in classes.items():
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == number:
            runs[-1][1] = code
        else:
            runs.append([code, code, number])
    return [n for first, last, number in runs for n in (first, last << 8 | number)]


def _compositions(decompositions: Mapping[int, str]) -> list[int]:
    """Return first, second, composite, sorted, of all primary composites that are not Hangul."""
    compose = normalizers.NFC().normalize_str
    rows = []
    for code, text in decompositions.items():
        if compose(text) != chr(code):
            continue  # excluded from composition
        first = compose(text[:-1])
        if len(first) != 1 or compose(first + text[-1]) != chr(code):
            raise _unexpected(f"U+{code:04X} as a composite of two")
        rows.append((ord(first), ord(text[-1]), code))
    return [n for row in sorted(rows) for n in row]


def _pool(texts: Iterable[str]) -> tuple[dict[str, int], list[int]]:
    """Return where each text starts in one list of code points that holds them all, and that list."""
    pool = ""
    offsets: dict[str, int] = {}
    for text in sorted(set(texts), key=lambda text: (-len(text), text)):
        at = pool.find(text)
        if at < 0:
            at = len(pool)
            pool += text
        offsets[text] = at
    return offsets, [ord(letter) for letter in pool]


def _unexpected(expected: str) -> ExportError:
    return ExportError(
        f"the Unicode tables of tokenizers {tokenizers.__version__}",
        expected=expected,
        found="something else",
        remedy="Use the tokenizers version that constraints.txt names, or extend the device kit's tables.",
    )


def _table(name: str, unit: str, columns: int, numbers: Sequence[int]) -> str:
    macro = f"PL__UNICODE_{name.upper()}_{unit}"
    lines = [f"#define {macro} {len(numbers) // columns}u"]
    lines.append(f"static const uint32_t pl__unicode_{name}[{len(numbers)}] = {{")
    lines += _wrapped(f"{number:#x}," for number in numbers)
    return "\n".join([*lines, "};", ""])


def _wrapped(words: Iterable[str]) -> Iterator[str]:
    line = "   "
    for word in words:
        if len(line) + len(word) > 118:
            yield line
            line = "   "
        line += f" {word}"
    yield line


_HEADER: Final = """\
/*
 * pocketlens_unicode.h: Unicode as tokenizers {version} sees it. Included by pocketlens_tokenizer.h.
 *
 * Generated by pocketlens.export.device_kit.unicode_tables from the library itself; not edited by hand.
 *
 *     class      code point << 2 | class, where a run starts: 0 other, 1 letter, 2 number, 3 white space
 *     lower      first, last << 8 | step, difference modulo 2**32 (U+0130 apart, which becomes two)
 *     combining  first, last << 8 | canonical combining class
 *     decompose  code point, offset in parts << 3 | length: full canonical decompositions, Hangul apart
 *     compose    first, second, primary composite; sorted
 */
#ifndef POCKETLENS_UNICODE_H
#define POCKETLENS_UNICODE_H

#include <stdint.h>

{tables}
#endif /* POCKETLENS_UNICODE_H */
"""

if __name__ == "__main__":
    sys.stdout.write(unicode_header())
