"""Pictures of unknown origin, decoded in a process of their own that has limits and can be killed.

Names are loaded at first use, so that the process itself starts with little.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.runtime.picture_worker.pool import PicturePool
    from pocketlens.runtime.picture_worker.protocol import WorkerLimits
    from pocketlens.runtime.picture_worker.reader import InProcess, PictureReader, picture_reader
    from pocketlens.runtime.picture_worker.worker import PictureWorker

__all__ = ["InProcess", "PicturePool", "PictureReader", "PictureWorker", "WorkerLimits", "picture_reader"]

_HOMES = {
    "InProcess": "reader",
    "PicturePool": "pool",
    "PictureReader": "reader",
    "PictureWorker": "worker",
    "WorkerLimits": "protocol",
    "picture_reader": "reader",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
