"""COCO captions: one JSON file a split, pictures and captions in two lists (Lin et al. 2014)."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pocketlens.distill.data.picture_place import open_place
from pocketlens.distill.data.recipe import CocoData
from pocketlens.distill.data.record import Found
from pocketlens.distill.data.sources.reading import parsed, record

__all__ = ["read"]


class _Picture(msgspec.Struct, frozen=True):
    id: int
    file_name: str


class _Caption(msgspec.Struct, frozen=True):
    image_id: int
    caption: str


class _Coco(msgspec.Struct, frozen=True):
    images: list[_Picture]
    annotations: list[_Caption]


def read(settings: CocoData, base: Path) -> Iterator[Found]:
    """Yield the records of all splits.

    Raises:
        DataError: a file is missing or is no COCO captions file.
    """
    for split, files in settings.splits.items():
        path, place = base / files.captions, open_place(base / files.images)
        with parsed(path, "COCO captions as JSON"):
            content = msgspec.json.decode(path.read_bytes(), type=_Coco)
        captions: dict[int, list[str]] = {}
        for one in content.annotations:
            captions.setdefault(one.image_id, []).append(one.caption)
        for picture in content.images:
            yield record(picture.file_name, split, captions.get(picture.id, []), place)
