"""Models that become bundles without distillation: open_clip and transformers dual encoders, BLIP captioners.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pocketlens.export.sources.exportable import Exportable, OpenedSource, exportable_of
    from pocketlens.export.sources.opening import is_direct, open_source

__all__ = ["Exportable", "OpenedSource", "exportable_of", "is_direct", "open_source"]

_HOMES: Final = {
    "Exportable": "exportable",
    "OpenedSource": "exportable",
    "exportable_of": "exportable",
    "is_direct": "opening",
    "open_source": "opening",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
