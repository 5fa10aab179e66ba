"""What a source finds on disk, before anybody looked at it closely."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pocketlens.distill.data.sample import PictureFile, TarPicture

__all__ = ["Broken", "Found", "Read", "Record"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A picture and the captions that were found beside it, as they are.

    Attributes:
        name: what the source calls it; unique inside a split.
        split: the split that the source says.
        path: the picture's file, or the tar that holds it.
        span: (offset, length) inside that tar.
        captions: all of them.
    """

    name: str
    split: str
    path: str
    span: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()

    def picture(self) -> PictureFile:
        """Return the picture's file."""
        return Path(self.path) if self.span is None else TarPicture(Path(self.path), *self.span)


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """A record that a source could not read: where it is, and why."""

    name: str
    split: str
    reason: str
    detail: str


Found = Record | Broken
Read = Callable[[], Iterator[Found]]
