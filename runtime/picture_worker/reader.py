"""Who prepares pictures: this process, or decoding processes."""

from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import Picture, preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker.pool import PicturePool
from pocketlens.runtime.picture_worker.protocol import WorkerLimits

__all__ = ["InProcess", "PictureReader", "picture_reader"]

_PLACES: Final = ("in_process", "worker")


class PictureReader(Protocol):
    """Prepares pictures for a graph."""

    def prepare(self, picture: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Return uint8 (height_px, width_px, 3), or raise `PictureError`."""

    def close(self) -> None:
        """Let go of what it holds."""


class InProcess:
    """Prepares pictures in this process: the fastest way, for files that are trusted."""

    def prepare(self, picture: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Return `preprocess(picture, spec)`."""
        return preprocess(picture, spec)

    def close(self) -> None:
        """Nothing is held."""


def picture_reader(
    decode: Literal["in_process", "worker"],
    *,
    workers: int | None = None,
    limits: WorkerLimits = WorkerLimits(),  # noqa: B008 - frozen
) -> PictureReader:
    """Return who prepares pictures.

    Args:
        decode: `in_process`, or `worker` for pictures of unknown origin.
        workers: how many decoding processes at most; by default one for each processor.
        limits: what each of them may use.

    Raises:
        ValueError: another word.
    """
    if decode not in _PLACES:
        raise ValueError(f"decode: expected one of {', '.join(_PLACES)}, found {decode!r}")
    return InProcess() if decode == "in_process" else PicturePool(workers, limits=limits)
