"""A folder of pictures that nobody described."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pocketlens.core.errors import DataError
from pocketlens.distill.data.recipe import PicturesData
from pocketlens.distill.data.record import Found, Record

__all__ = ["PICTURE_SUFFIXES", "read"]

PICTURE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".mpo"}
)
"""Names that are taken for pictures; other files in the folder are passed over."""


def read(settings: PicturesData, base: Path) -> Iterator[Found]:
    """Yield the pictures below the folder, in the order of their names; links to folders are not followed.

    Raises:
        DataError: there is no such folder.
    """
    root = base / settings.path
    if not root.is_dir():
        raise DataError(
            f"data source {root}",
            expected="a folder of pictures",
            found="a file" if root.exists() else "nothing at that path",
            remedy="Check data.path in the recipe.",
        )
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in PICTURE_SUFFIXES:
                yield Record(name=path.relative_to(root).as_posix(), split="train", path=str(path))
