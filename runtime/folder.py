"""The files of a folder, at the cost of one stat each."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from pocketlens.core.errors import PictureError
from pocketlens.runtime.store.rows import Refused

__all__ = ["SourceFile", "checked_folder", "refused_file", "unreadable", "walk"]


class SourceFile(msgspec.Struct, frozen=True):
    """A file as it is now: absolute path, size in bytes, modification time in nanoseconds since 1970."""

    path: str
    size_bytes: int
    mtime_ns: int

    @property
    def suffix(self) -> str:
        """What the name ends with, lower case, with the dot."""
        return os.path.splitext(self.path)[1].lower()


def checked_folder(folder: str | os.PathLike[str]) -> str:
    """Return the absolute path of `folder`, without links.

    Raises:
        PictureError: it is missing or not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PictureError(
            os.fspath(folder),
            kind="not_a_file" if root.exists() else "missing",
            expected="a folder with pictures",
            found="a file" if root.exists() else "nothing at that path",
            remedy="Check the path; single files are captioned with `pocketlens caption`.",
        )
    return os.fspath(root.resolve())


def walk(places: Sequence[str], suffixes: Collection[str]) -> tuple[list[SourceFile], list[Refused]]:
    """Return the files with one of `suffixes` at or below `places`, sorted, and what could not be read.

    Links are neither followed nor returned. A place that is not there has no files.
    """
    files: list[SourceFile] = []
    refused: list[Refused] = []
    for place in places:
        if os.path.isdir(place) and not os.path.islink(place):
            _walk_folder(place, suffixes, files, refused)
        elif os.path.splitext(place)[1].lower() in suffixes and not os.path.islink(place):
            _add(place, files, refused)
    return files, refused


def _walk_folder(folder: str, suffixes: Collection[str], files: list[SourceFile], refused: list[Refused]) -> None:
    # One scandir a folder tells kind and link-ness without a stat; a folder at a time keeps the order sorted.
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return  # deleted since its parent was listed
    except OSError as error:
        refused.append(refused_file(folder, unreadable(folder, error)))
        return
    folders = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in suffixes and not entry.is_symlink():
            _add(entry.path, files, refused)
    for below in folders:
        _walk_folder(below, suffixes, files, refused)


def _add(path: str, files: list[SourceFile], refused: list[Refused]) -> None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return  # deleted since the folder was listed
    except OSError as error:
        refused.append(refused_file(path, unreadable(path, error)))
        return
    files.append(SourceFile(path, status.st_size, status.st_mtime_ns))


def unreadable(path: str, error: OSError) -> PictureError:
    """Return what an `OSError` about `path` means."""
    return PictureError(
        path,
        kind="unreadable",
        expected="a folder or file that can be read",
        found=error.strerror or type(error).__name__,
        remedy="Check the permissions and the disk.",
    )


def refused_file(path: str, error: PictureError) -> Refused:
    """Return the record of a refused file."""
    # The error may speak of bytes: what was read is named by the file.
    error.what = path
    return Refused(path=path, kind=error.kind, message=str(error))
