"""The frontier as a picture: what a megabyte and a millisecond buy, and which layers cost most."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pocketlens.export.sensitivity.frontier import Frontier, sensitivity_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_frontier"]

_WORST: Final = 20
_SIZE_IN: Final = (13.0, 4.5)
_CHOSEN: Final = "tab:red"
_OTHER: Final = "tab:blue"
_CEILING_DB: Final = 80.0  # where an infinite ratio is drawn


def plot_frontier(result: Frontier, path: Path) -> None:
    """Write `result` as a PNG of three panels: cosine by size, cosine by latency, SNR by layer.

    Args:
        result: what `frontier` measured.
        path: of the picture; its folder exists.
    """
    # Imported here: a bundle can be exported without a plot. No pyplot: it keeps global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    size, latency, layers = figure.subplots(1, 3)
    _points(size, result, [point.size_bytes / 1e6 for point in result.points], "size, MB")
    _points(latency, result, [point.latency.p50_ms for point in result.points], "latency p50, ms")
    _bars(layers, result)
    figure.suptitle(f"{result.graph}: {result.gate}")
    figure.savefig(path, format="png", dpi=110)


def _points(axes: "Axes", result: Frontier, xs: list[float], label: str) -> None:
    for x, point in zip(xs, result.points, strict=True):
        colour = _CHOSEN if point.label == result.chosen else _OTHER
        axes.plot(x, point.parity.mean, "o", color=colour)
        axes.annotate(str(point.float_layers), (x, point.parity.mean), xytext=(4, -10), textcoords="offset points")
    axes.axhline(result.limit, linestyle="--", color="grey")
    axes.set_xlabel(f"{label} (number: layers in float)")
    axes.set_ylabel("mean cosine, held out")


def _bars(axes: "Axes", result: Frontier) -> None:
    rows = sorted(result.layers, key=sensitivity_order)[:_WORST][::-1]
    colours = [_CHOSEN if row.kept_in_float else _OTHER for row in rows]
    axes.barh(range(len(rows)), [min(sensitivity_order(row), _CEILING_DB) for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), [row.name.removeprefix("backbone.") for row in rows], fontsize=6)
    axes.set_xlabel("SNR in dB when it alone is int8 (red: kept in float)")
