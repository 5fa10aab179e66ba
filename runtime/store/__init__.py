"""The local store: what was indexed, in one SQLite file that survives a kill, and searches of it."""

from typing import TYPE_CHECKING

from pocketlens.runtime.store.rows import Dtype, Filter, Hit, Known, Receipt, Refused, Row, Written

if TYPE_CHECKING:
    from pocketlens.runtime.store.store import Store

__all__ = ["Dtype", "Filter", "Hit", "Known", "Receipt", "Refused", "Row", "Store", "Written"]


def __getattr__(name: str) -> object:
    if name != "Store":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pocketlens.runtime.store.store import Store

    return Store
