"""Pictures with captions that the user brings, for parity, calibration and quality.

A JSON-lines file; paths are relative to its folder::

    {"image": "photos/0001.jpg", "captions": ["two dogs play in the snow", "dogs in winter"]}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.core.errors import DataError
from pocketlens.export.reference import Samples

__all__ = ["Captioned", "read_captioned", "samples_of", "split_captioned"]

_CALIBRATION_SHARE: Final = 5


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    image: str
    captions: tuple[str, ...]


class Captioned(msgspec.Struct, frozen=True):
    """One picture file and the texts that describe it, at least one."""

    image: Path
    captions: tuple[str, ...]


def read_captioned(path: Path) -> list[Captioned]:
    """Return the pictures in the JSON-lines file `path`, in order; unknown keys are ignored.

    Raises:
        DataError: the file cannot be read, a line is malformed, has no caption or names no file, or there are
            fewer than two lines.
    """
    remedy = 'Write one line a picture: {"image": "relative/path.jpg", "captions": ["…"]}.'
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(
            str(path), expected="a readable JSON-lines file", found=error.strerror or str(error), remedy=remedy
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, line {number}", expected="image and captions as JSON", found=str(error), remedy=remedy
            ) from error
        image = path.parent / entry.image
        if not entry.captions or not image.is_file():
            raise DataError(
                f"{path}, line {number}",
                expected="a picture file and at least one caption",
                found=f"{len(entry.captions)} captions" if image.is_file() else f"no file {image}",
                remedy=remedy,
            )
        found.append(Captioned(image, entry.captions))
    if len(found) < 2:
        raise DataError(
            str(path),
            expected="at least two pictures: one to calibrate with, one to compare on",
            found=str(len(found)),
            remedy=remedy,
        )
    return found


def split_captioned(pictures: Sequence[Captioned]) -> tuple[list[Captioned], list[Captioned]]:
    """Return (to judge, to calibrate with): every fifth picture calibrates and is not judged on.

    With fewer than five pictures, the last one calibrates.
    """
    step = min(_CALIBRATION_SHARE, len(pictures))
    held = [picture for index, picture in enumerate(pictures) if index % step == step - 1]
    return [picture for index, picture in enumerate(pictures) if index % step != step - 1], held


def samples_of(pictures: Sequence[Captioned]) -> Samples:
    """Return the pictures with their first captions, as the exporter takes them."""
    return Samples([picture.image for picture in pictures], [picture.captions[0] for picture in pictures])
