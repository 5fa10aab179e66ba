"""Captions: one spelling of white space, and a word for what is wrong with those that are no captions."""

import re
import unicodedata
from typing import Final

from pocketlens.distill.data.recipe import CurateRecipe

__all__ = ["CAPTION_FAULTS", "clean", "fault"]

CAPTION_FAULTS: Final = ("empty", "too_short", "too_long", "no_language", "file_name", "address", "repetition")
"""Why a caption is dropped; one that too many pictures share is `repeated`, see `pocketlens.distill.data.curate`."""

_SPACE: Final = re.compile(r"\s+")
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_FILE_NAME: Final = re.compile(
    r"\S*\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg)|(?:IMG|DSC|PXL|DCIM|Screenshot)[-_ ]?\d\S*", re.I
)
_ADDRESS: Final = re.compile(r"https?://|www\.\S|\S+@\S+\.\S", re.I)
_SAME_RUN: Final = re.compile(r"(\w)\1{6,}")
_REPEATS: Final = 5


def clean(caption: str) -> str:
    """Return `caption` in Unicode's NFC, without control characters and tags, white space made single spaces."""
    text = unicodedata.normalize("NFC", _TAG.sub(" ", caption))
    kept = "".join(
        " " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs", "Co")
    )
    return _SPACE.sub(" ", kept).strip()


def fault(caption: str, settings: CurateRecipe) -> str | None:
    """Return what is wrong with a cleaned `caption`, one of `CAPTION_FAULTS`, or nothing.

    No rule knows a language: they count characters of Unicode's classes and look for forms (file names, addresses).
    """
    if not caption:
        return "empty"
    if len(caption) < settings.min_chars:
        return "too_short"
    if len(caption) > settings.max_chars:
        return "too_long"
    if _FILE_NAME.fullmatch(caption):
        return "file_name"
    if _ADDRESS.search(caption):
        return "address"
    marks = [c for c in caption if not c.isspace()]
    letters = sum(unicodedata.category(c)[0] in "LMN" for c in marks)
    if letters < settings.min_letters * len(marks) or not any(unicodedata.category(c)[0] == "L" for c in marks):
        return "no_language"
    words = caption.casefold().split()
    if _SAME_RUN.search(caption) or any(words[i : i + _REPEATS] == [words[i]] * _REPEATS for i in range(len(words))):
        return "repetition"
    return None
