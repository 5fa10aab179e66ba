"""Tars as img2dataset writes them: members that share a key belong to one sample."""

import glob
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from pocketlens.core.errors import DataError
from pocketlens.distill.data.picture_place import Member, tar_members
from pocketlens.distill.data.recipe import WebdatasetData
from pocketlens.distill.data.record import Broken, Found, Record
from pocketlens.distill.data.sample import TarPicture
from pocketlens.distill.data.sources.pictures import PICTURE_SUFFIXES

__all__ = ["read"]


def read(settings: WebdatasetData, base: Path) -> Iterator[Found]:
    """Yield the records of all splits, tar after tar; one tar's list of members is held at a time.

    Raises:
        DataError: a pattern matches nothing, or a tar is damaged or compressed.
    """
    for split, patterns in settings.splits.items():
        for pattern in patterns:
            tars = sorted(glob.glob(str(base / pattern)))
            if not tars:
                raise DataError(
                    f"data source {pattern}",
                    expected=f"tars for the split {split}",
                    found="no file of that pattern",
                    remedy="Check data.splits in the recipe.",
                )
            for tar in tars:
                yield from _read_tar(Path(tar), split, settings.caption_key)


def _read_tar(path: Path, split: str, caption_key: str) -> Iterator[Found]:
    # A key is the name up to the first dot of its last part, as the webdataset format says.
    for key, group in groupby(tar_members(path), key=lambda member: _key(member.name)):
        yield _sample(path, key, split, {_extension(member.name): member for member in group}, caption_key)


def _sample(path: Path, key: str, split: str, members: dict[str, Member], caption_key: str) -> Found:
    name = f"{path.name}/{key}"
    picture = next((member for end, member in members.items() if f".{end}" in PICTURE_SUFFIXES), None)
    if picture is None:
        found = ", ".join(members)
        return Broken(name=name, split=split, reason="missing", detail=f"no picture among {found}")
    try:
        captions = tuple(_captions(path, members, caption_key))
    except (UnicodeDecodeError, msgspec.MsgspecError) as error:
        return Broken(name=name, split=split, reason="malformed", detail=str(error))
    return Record(name=name, split=split, path=str(path), span=(picture.offset, picture.length), captions=captions)


def _captions(path: Path, members: dict[str, Member], caption_key: str) -> Iterable[str]:
    if "txt" in members:
        return [_content(path, members["txt"]).decode("utf-8")]
    if "json" in members:
        caption = msgspec.json.decode(_content(path, members["json"]), type=dict[str, Any]).get(caption_key)
        return [text for text in (caption if isinstance(caption, list) else [caption]) if isinstance(text, str)]
    return []


def _content(path: Path, member: Member) -> bytes:
    return TarPicture(path, member.offset, member.length).read()


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.split('.')[0]}".lstrip("/")


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
