"""The local store: what was indexed, in one SQLite file that survives a kill."""

from typing import TYPE_CHECKING

from pocketlens.runtime.store.rows import Hit, Known, Refused, Row

if TYPE_CHECKING:
    from pocketlens.runtime.store.store import Store

__all__ = ["Hit", "Known", "Refused", "Row", "Store"]


def __getattr__(name: str) -> object:
    if name != "Store":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pocketlens.runtime.store.store import Store

    return Store
