"""Mixed precision by sensitivity: which layers stay in float so that an int8 graph passes its gate.

Works on float ONNX graphs and static QDQ quantization. `docs/mixed-precision.md` shows the way through.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pocketlens.export.sensitivity.comparison import Trial, compare_settings
    from pocketlens.export.sensitivity.equalisation import equalise
    from pocketlens.export.sensitivity.frontier import Frontier, Point, measure_frontier
    from pocketlens.export.sensitivity.layers import Layer, find_layers
    from pocketlens.export.sensitivity.measure import Sensitivity, measure_layers
    from pocketlens.export.sensitivity.plot import plot_frontier
    from pocketlens.export.sensitivity.quantizer import StaticQuantizer
    from pocketlens.export.sensitivity.search import Gate, MixedPrecision, fewest_float_layers
    from pocketlens.export.sensitivity.settings import Settings

_HOMES: Final = {
    "Frontier": "frontier",
    "Gate": "search",
    "Layer": "layers",
    "MixedPrecision": "search",
    "Point": "frontier",
    "Sensitivity": "measure",
    "Settings": "settings",
    "StaticQuantizer": "quantizer",
    "Trial": "comparison",
    "compare_settings": "comparison",
    "equalise": "equalisation",
    "fewest_float_layers": "search",
    "find_layers": "layers",
    "measure_frontier": "frontier",
    "measure_layers": "measure",
    "plot_frontier": "plot",
}

__all__ = [
    "Frontier",
    "Gate",
    "Layer",
    "MixedPrecision",
    "Point",
    "Sensitivity",
    "Settings",
    "StaticQuantizer",
    "Trial",
    "compare_settings",
    "equalise",
    "fewest_float_layers",
    "find_layers",
    "measure_frontier",
    "measure_layers",
    "plot_frontier",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
