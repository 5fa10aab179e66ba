"""Puts a finished folder in the place of another one in a single step.

rename(2) does not replace a folder that holds files. Linux (renameat2 with RENAME_EXCHANGE, since
3.15) and macOS (renamex_np with RENAME_SWAP) can exchange two names in one step: a kill at any
moment leaves the old folder or the new one at the path. On a file system that cannot, the old
folder is renamed aside first. A kill between the two renames then leaves nothing at the path, and
`recover` puts the old folder back.
"""

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from pocketlens.core.errors import BundleError

__all__ = ["check_replaceable", "exchange", "recover", "replace_folder", "sync_folder", "sync_tree"]

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_RENAME_SWAP: Final = 2  # macOS sys/stdio.h
_CANNOT: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})


def replace_folder(staged: Path, root: Path) -> None:
    """Put the folder `staged` at `root`; what stood there is removed.

    Both must be on one file system. `staged` is gone afterwards.

    Raises:
        OSError: the system refused; `root` is as it was.
    """
    if not root.exists():
        staged.rename(root)
        sync_folder(root.parent)
        return
    if exchange(staged, root):
        sync_folder(root.parent)
        shutil.rmtree(staged, ignore_errors=True)
        return
    retired = _retired(root)
    root.rename(retired)
    staged.rename(root)
    sync_folder(root.parent)
    shutil.rmtree(retired, ignore_errors=True)


def recover(root: Path) -> None:
    """Put back, or clear away, what a kill in the middle of `replace_folder` left beside `root`."""
    retired = _retired(root)
    if not retired.is_dir():
        return
    if root.exists():
        shutil.rmtree(retired, ignore_errors=True)
    else:
        retired.rename(root)


def check_replaceable(root: Path, marker: str) -> None:
    """Check that nothing but a bundle (a folder with the file `marker`) would be replaced.

    Raises:
        BundleError: a file stands there, or a folder that holds something else.
    """
    if not root.exists():
        return
    if root.is_dir() and ((root / marker).is_file() or not any(root.iterdir())):
        return
    raise BundleError(
        f"folder {root}",
        expected="a bundle, an empty folder or nothing at that path",
        found="a folder with other files" if root.is_dir() else "a file",
        remedy="Name another folder, or move what stands there away.",
    )


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two paths name, in one step; return whether this system and file system can.

    Raises:
        OSError: they can, but refused these paths.
    """
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            code = library.renamex_np(first, second, ctypes.c_uint(_RENAME_SWAP))
        else:
            code = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE))
    except AttributeError:  # a C library without the call
        return False
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def sync_tree(root: Path) -> None:
    """Wait until every file and folder below `root` is on the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Wait until the names in the folder are on the disk."""
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _retired(root: Path) -> Path:
    return root.with_name(f".{root.name}.retired")
