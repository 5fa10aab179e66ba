"""What the sources share: files that must be there, and records from what a list says."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pocketlens.core.errors import DataError
from pocketlens.distill.data.picture_place import PicturePlace
from pocketlens.distill.data.record import Broken, Found, Record

__all__ = ["joined", "parsed", "record"]


@contextmanager
def parsed(path: Path, expected: str) -> Iterator[None]:
    """Turn what reading `path` raises into a `DataError` that says what was `expected`."""
    try:
        yield
    except (OSError, LookupError, ValueError, msgspec.MsgspecError) as error:
        if isinstance(error, (UnicodeError, LookupError)):
            remedy = "Save it as UTF-8, or give its encoding in the recipe: data.encoding."
        else:
            remedy = "Check the path and the format in the recipe's [data]."
        raise DataError(
            f"data source {path}",
            expected=expected,
            found=f"{type(error).__name__}: {str(error)[:200]}" if path.exists() else "nothing at that path",
            remedy=remedy,
        ) from error


def record(name: str, split: str, captions: Iterable[Any], place: PicturePlace) -> Found:
    """Return the record of the picture `name`, or what is missing of it."""
    found = place.find(name)
    if found is None:
        return Broken(name=name, split=split, reason="missing", detail="no such picture beside the list")
    path, span = found
    texts = tuple(text for text in captions if isinstance(text, str))
    return Record(name=name, split=split, path=path, span=span, captions=texts)


def joined(rows: Iterable[tuple[str, list[Any]]], split: str, place: PicturePlace) -> Iterator[Found]:
    """Yield one record for each picture of `rows` (name, captions); rows of one picture may lie apart."""
    captions: dict[str, list[Any]] = {}
    for name, texts in rows:
        captions.setdefault(name, []).extend(texts)
    for name, texts in captions.items():
        yield record(name, split, texts, place)
