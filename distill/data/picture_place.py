"""Where the pictures of a list lie: in a folder, or in a tar that is read in place."""

import tarfile
from pathlib import Path
from typing import NamedTuple

from pocketlens.core.errors import DataError

__all__ = ["Member", "PicturePlace", "open_place", "tar_members"]


class Member(NamedTuple):
    """A regular file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    length: int


class PicturePlace:
    """A folder, or the members of a tar by name and by bare file name.

    Args:
        path: the folder or the tar.
        members: of the tar; nothing for a folder.
    """

    def __init__(self, path: Path, members: list[Member] | None = None) -> None:
        self._path = path
        self._spans: dict[str, tuple[int, int]] | None = None
        if members is not None:
            self._spans = {Path(m.name).name: (m.offset, m.length) for m in members}
            self._spans |= {m.name: (m.offset, m.length) for m in members}

    def find(self, name: str) -> tuple[str, tuple[int, int] | None] | None:
        """Return (file, span) of the picture `name`, or nothing where there is none; no name leads out of the place."""
        if self._spans is not None:
            span = self._spans.get(name) or self._spans.get(name.removeprefix("./"))
            return None if span is None else (str(self._path), span)
        path = self._path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            return None
        return str(path), None


def open_place(path: Path) -> PicturePlace:
    """Return the pictures at `path`, a folder or an uncompressed tar.

    Raises:
        DataError: there is neither.
    """
    if path.is_dir():
        return PicturePlace(path)
    return PicturePlace(path, tar_members(path))


def tar_members(path: Path) -> list[Member]:
    """Return the regular files of the tar at `path`, in order.

    Raises:
        DataError: there is no such file, or it is compressed, damaged or no tar.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return [Member(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"pictures {path}",
            expected="a folder, or a tar that is not compressed",
            found=f"{type(error).__name__}: {error}" if path.exists() else "nothing at that path",
            remedy="Check the path in the recipe; unpack a compressed tar.",
        ) from error
