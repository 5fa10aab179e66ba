"""Names of files in a bundle: the ones that mean the same file on every system, and no others.

A bundle is unpacked on phones, Macs and Windows machines. A name that one of them changes, folds into
another or gives to a device would make the closed world leak, so it is refused everywhere. Names are
printable ASCII: that leaves no Unicode normalisation to disagree about (APFS and HFS+ decompose,
ext4 keeps bytes, NTFS folds case by a table of its own).
"""

from collections.abc import Iterable
from typing import Final

__all__ = ["MAX_NAME_BYTES", "name_fault", "names_fault"]

MAX_NAME_BYTES: Final = 240
"""Longest relative path in a bundle: with a folder before it, it still fits Windows' 260."""

_FORBIDDEN: Final = frozenset('\\:*?"<>|')
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file: devices in every folder, with any extension.
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)


def name_fault(name: str) -> str | None:
    """Return what is wrong with the relative path `name`, in a few words, or `None`."""
    if not name:
        return "an empty name"
    if len(name) > MAX_NAME_BYTES:
        return f"a name of {len(name)} letters"
    if not name.isascii() or not name.isprintable():
        return "a letter that is not printable ASCII"
    if bad := sorted(_FORBIDDEN.intersection(name)):
        return f"the letter {bad[0]}"
    if name.startswith("/"):
        return "an absolute path"
    return next((fault for part in name.split("/") if (fault := _part_fault(part))), None)


def _part_fault(part: str) -> str | None:
    if not part:
        return "an empty part"
    if part in {".", ".."}:
        return f"the part {part}"
    if part.endswith((".", " ")) or part.startswith(" "):
        return "a part with a blank at an end or a dot at its end"  # Windows drops them
    if part.partition(".")[0].rstrip(" ").lower() in _DEVICES:
        return f"the device name {part}"
    return None


def names_fault(names: Iterable[str]) -> str | None:
    """Return how two of `names` would meet in one file on some system, or `None`.

    Two names meet when they are equal, differ in case only, or one is a folder of the other. Folders
    that differ in case only meet as well: there they are one folder, elsewhere two.
    """
    spelling: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if name in files:
            return f"{name} twice"
        files.add(name)
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if spelling.setdefault(path.lower(), path) != path:
                return f"{spelling[path.lower()]} and {path}, which differ in case only"
            if depth < len(parts):
                folders.add(path)
    both = sorted(files & folders)
    return f"{both[0]} as a file and as a folder" if both else None
