"""The splits of Karpathy & Fei-Fei 2015 for Flickr8k, Flickr30k and COCO: `dataset.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.distill.data.picture_place import open_place
from pocketlens.distill.data.recipe import KarpathyData
from pocketlens.distill.data.record import Found
from pocketlens.distill.data.sources.reading import parsed, record

__all__ = ["read"]

_RESTVAL: Final = "restval"


class _Sentence(msgspec.Struct, frozen=True):
    raw: str


class _Picture(msgspec.Struct, frozen=True):
    filename: str
    split: str
    sentences: list[_Sentence]
    filepath: str = ""


class _Dataset(msgspec.Struct, frozen=True):
    images: list[_Picture]


def read(settings: KarpathyData, base: Path) -> Iterator[Found]:
    """Yield the records of all splits.

    Raises:
        DataError: the file is missing or of another format.
    """
    path, place = base / settings.path, open_place(base / settings.images)
    with parsed(path, "Karpathy's dataset.json"):
        content = msgspec.json.decode(path.read_bytes(), type=_Dataset)
    for picture in content.images:
        split = settings.restval if picture.split == _RESTVAL else picture.split
        name = f"{picture.filepath}/{picture.filename}".lstrip("/")
        if split != "drop":
            yield record(name, split, [sentence.raw for sentence in picture.sentences], place)
