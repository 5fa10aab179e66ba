"""Offline use of a bundle: embeddings, captions, a searchable store. Free of torch.

Names are loaded at first use, so that importing this costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.runtime.confidence import FEATURES, feature_table, fit_confidence
    from pocketlens.runtime.decoding import Beam, Decoding, Greedy, Nucleus
    from pocketlens.runtime.engines import ENGINES, Engine
    from pocketlens.runtime.finding import find
    from pocketlens.runtime.indexing import IndexProgress, IndexReport, index_folder
    from pocketlens.runtime.lens import Lens, load
    from pocketlens.runtime.results import CaptionPiece, Description, Refusal
    from pocketlens.runtime.store import Filter, Hit, Row, Store
    from pocketlens.runtime.upgrading import upgrade_store
    from pocketlens.runtime.watching import watch_folder

__all__ = [
    "ENGINES",
    "FEATURES",
    "Beam",
    "CaptionPiece",
    "Decoding",
    "Description",
    "Engine",
    "Filter",
    "Greedy",
    "Hit",
    "IndexProgress",
    "IndexReport",
    "Lens",
    "Nucleus",
    "Refusal",
    "Row",
    "Store",
    "feature_table",
    "find",
    "fit_confidence",
    "index_folder",
    "load",
    "upgrade_store",
    "watch_folder",
]

_HOMES = {
    "ENGINES": "engines",
    "Engine": "engines",
    "FEATURES": "confidence",
    "feature_table": "confidence",
    "fit_confidence": "confidence",
    "Beam": "decoding",
    "Decoding": "decoding",
    "Greedy": "decoding",
    "Nucleus": "decoding",
    "IndexProgress": "indexing",
    "IndexReport": "indexing",
    "index_folder": "indexing",
    "Lens": "lens",
    "load": "lens",
    "CaptionPiece": "results",
    "Description": "results",
    "Refusal": "results",
    "Filter": "store",
    "Hit": "store",
    "Row": "store",
    "Store": "store",
    "find": "finding",
    "upgrade_store": "upgrading",
    "watch_folder": "watching",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
