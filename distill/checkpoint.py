"""The state of a run on disk: written whole or not at all, and one run a folder at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pocketlens.core.errors import DataError, TrainingError, storage_errors

__all__ = ["load_state", "only_run", "save_state"]


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process.

    Raises:
        TrainingError: another process trains in it.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"run folder {folder}",
                expected="a folder that no other run uses",
                found="another process training in it",
                remedy="Wait for it, or choose another folder.",
            ) from error
        yield


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; a kill or a full disk leaves the state that was there before.

    Raises:
        StorageFull: no space left.
    """
    partial = path.with_suffix(".partial")
    with storage_errors(path):
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return the state at `path`, or `None` where there is none yet.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises RuntimeError, UnpicklingError, EOFError, KeyError ... for a damaged file
        raise DataError(
            f"checkpoint {path}",
            expected="a checkpoint that this run wrote",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="Delete the file to start this run from its beginning.",
        ) from error
    return state
