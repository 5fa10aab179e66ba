"""Which kinds of object a caption names: a table of classes with their synonyms, as CHAIR needs it.

The file is TOML, `format = 1`::

    [classes]
    dog = ["dog", "puppy", "hound"]        # singular names; regular plurals are understood
    person = ["person", "man", "men"]      # an irregular plural is a name of its own

    [apart]
    phrases = ["hot dog stand"]            # names no object; the words inside it are not looked at

Names may have several words. In a text the longest name wins: "hot dog" is no dog where both are in the table.
Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, section 3.1, count in this way.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.scenes.truth import SYNONYMS

__all__ = ["ObjectTable", "counted", "object_table", "read_object_table", "true_kinds"]

_WORD: Final = re.compile(r"[^\W_]+")
_VOWELS: Final = frozenset("aeiou")


class _Apart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    phrases: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    classes: dict[str, tuple[str, ...]]
    apart: _Apart = _Apart()


class ObjectTable:
    """Classes of objects and the words that name them.

    Args:
        classes: the names of each class in the singular; a class without names has none.
        apart: phrases that name no object.
        plurals: whether the regular plural of each name is one of its names.

    Raises:
        DataError: two classes share a name, or a name has no letters.
    """

    def __init__(
        self, classes: Mapping[str, Sequence[str]], *, apart: Iterable[str] = (), plurals: bool = True
    ) -> None:
        self.classes: tuple[str, ...] = tuple(classes)
        self._owner: dict[tuple[str, ...], str | None] = {}
        for phrase in apart:
            for words in _forms(phrase, plurals=plurals):
                self._owner[words] = None
        for kind, names in classes.items():
            for name in names:
                for words in _forms(name, plurals=plurals):
                    other = self._owner.setdefault(words, kind)
                    if other != kind:
                        raise DataError(
                            f"object table, class {kind}",
                            expected="names that belong to one class only",
                            found=f"{' '.join(words)!r}, which is in {other or 'apart.phrases'} too",
                            remedy="Take it out of one of them.",
                        )
        self._longest = max((len(words) for words in self._owner), default=0)
        self._names = {kind: names[0] for kind, names in classes.items() if names}

    def mentioned(self, text: str) -> frozenset[str]:
        """Return the classes that `text` names, upper or lower case, longest names first."""
        words = tuple(_WORD.findall(text.lower()))
        found, at = set[str](), 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                if words[at : at + length] in self._owner:
                    owner = self._owner[words[at : at + length]]
                    found |= set() if owner is None else {owner}
                    at += length
                    break
            else:
                at += 1
        return frozenset(found)

    def name(self, kind: str) -> str:
        """Return the usual name of a class: its first one, the class's own where it has none."""
        return self._names.get(kind, kind)


def read_object_table(path: Path) -> ObjectTable:
    """Return the table in the file at `path`.

    Raises:
        DataError: it cannot be read, is malformed or of another format, or two classes share a name.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), expected="an object table (TOML)", found=str(error), remedy="See docs/evaluation.md."
        ) from error


@cache
def object_table(name: str) -> ObjectTable:
    """Return the built-in table `scenes` or `photo`, or the one in the file of that name.

    Raises:
        DataError: see `read_object_table`.
    """
    if name == "scenes":
        # The word forms are all there, plurals too. A set has no first one: the usual name is the class's own.
        named = {kind: sorted(words, key=lambda word: (word != kind, word)) for kind, words in SYNONYMS.items()}
        return ObjectTable(named, plurals=False)
    if name == "photo":
        source = resources.files("pocketlens.distill.evaluation").joinpath("photo_objects.toml")
        return _parsed(source.read_text(encoding="utf-8"), "photo_objects.toml")
    return read_object_table(Path(name))


def true_kinds(samples: Sequence[Sample], table: ObjectTable) -> list[frozenset[str]]:
    """Return what each picture shows: its `kinds` where all are classes of `table`, or what its human captions name.

    Without a list of the objects, CHAIR takes the human captions for the truth (Rohrbach et al. 2018, section 3.1).
    Whatever no human mentioned counts as absent then, so that the figures are an upper bound.
    """
    return [
        frozenset(sample.kinds) if counted(sample, table) else frozenset().union(*map(table.mentioned, sample.captions))
        for sample in samples
    ]


def counted(sample: Sample, table: ObjectTable) -> bool:
    """Return whether somebody counted the objects of the picture, in classes of `table`."""
    return bool(sample.kinds) and set(sample.kinds) <= set(table.classes)


def _parsed(text: str, source: str) -> ObjectTable:
    try:
        table = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise DataError(
            source, expected="an object table of format 1", found=str(error), remedy="See docs/evaluation.md."
        ) from error
    if table.format != 1 or not table.classes:
        raise DataError(
            source,
            expected="format 1 and at least one class",
            found=f"format {table.format}, {len(table.classes)} classes",
            remedy="See docs/evaluation.md, or upgrade pocketlens.",
        )
    return ObjectTable(table.classes, apart=table.apart.phrases)


def _forms(name: str, *, plurals: bool) -> list[tuple[str, ...]]:
    words = tuple(_WORD.findall(name.lower()))
    if not words:
        raise DataError("object table", expected="names with letters", found=repr(name), remedy="Take it out.")
    return [words, (*words[:-1], _plural(words[-1]))] if plurals else [words]


def _plural(noun: str) -> str:
    """Return the regular English plural of a noun."""
    if noun.endswith("y") and noun[-2:-1] not in _VOWELS:
        return f"{noun[:-1]}ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun}s"
