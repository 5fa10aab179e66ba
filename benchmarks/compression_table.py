"""Tables and a picture of what `benchmarks.compression` measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.compression_rows import Row
from pocketlens.core.bundle import Latency
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
from pocketlens.export.recipe import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NAMES", "draw", "tables"]

NAMES: Final = {
    "whole": "as trained",
    "longer": "trained on",
    "quantized": "QAT",
    "pruned": "pruned",
    "pruned-low-rate": "pruned, low rate",
    "pruned-more": "pruned more",
    "inherited": "half, inherited",
    "scratch": "half, from scratch",
}
_PAIRS: Final = (
    ("quantized", "whole"),
    ("longer", "whole"),
    ("pruned", "whole"),
    ("pruned", "longer"),
    ("pruned-low-rate", "whole"),
    ("pruned-low-rate", "pruned"),
    ("pruned-more", "whole"),
    ("pruned-more", "longer"),
    ("inherited", "whole"),
    ("inherited", "scratch"),
)
Latencies = Mapping[str, Mapping[str, Latency]]


def tables(rows: Sequence[Row], latency: Latencies) -> str:
    """Return two Markdown tables: every row, and paired differences of rows in the same graphs."""
    rows = _ordered(rows)
    bootstrap = Bootstrap(max(len(row.cider) for row in rows), seed=0)
    found = {(row.arm, row.variant): _figures(row, bootstrap) for row in rows if row.cider}
    lines = [
        "| student | graphs | R@1 image to text | R@1 text to image | CIDEr | MB | image encoder, ms | caption, ms |",
        "|---|---|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        one = found.get((row.arm, row.variant))
        times = latency.get(f"{row.arm} {row.variant}")
        timed = [f"{times[what].p50_ms:.2f}" if times else "" for what in ("image", "caption")]
        words = [_words(each, digits) for each, digits in zip(one, (3, 3, 1), strict=True)] if one else ["", "", ""]
        cells = [NAMES[row.arm], row.variant, *words]
        lines.append(f"| {' | '.join([*cells, f'{row.graph_bytes / 1e6:.2f}', *timed])} |")
    lines += ["", "| difference | graphs | R@1 image to text | R@1 text to image | CIDEr |", "|---|---|---|---|---|"]
    for after, before in _compared(list(found)):
        pair = zip(found[after], found[before], strict=True)
        apart = [bootstrap.difference(a, b) for a, b in pair]
        words = [_words(one, digits, sign=True) for one, digits in zip(apart, (3, 3, 1), strict=True)]
        # a student in its two precisions, or two students in the same graphs
        graphs = after[1] if after[1] == before[1] else f"{after[1]} − {before[1]}"
        names = NAMES[after[0]] if after[0] == before[0] else f"{NAMES[after[0]]} − {NAMES[before[0]]}"
        lines.append(f"| {names} | {graphs} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _compared(rows: Sequence[tuple[str, Variant]]) -> list[tuple[tuple[str, Variant], tuple[str, Variant]]]:
    """Return what is compared: int8 with float of each student, then `_PAIRS` in each kind of graphs."""
    rounded: list[tuple[tuple[str, Variant], tuple[str, Variant]]] = [
        ((arm, variant), (arm, "onnx-fp32")) for arm, variant in rows if variant.endswith("int8")
    ]
    pairs = [*rounded, *(((a, variant), (b, variant)) for a, b in _PAIRS for _, variant in dict.fromkeys(rows))]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] in rows and pair[1] in rows]


def draw(rows: Sequence[Row], latency: Latencies, path: Path) -> None:
    """Write a PNG of two rows of panels: R@1 and CIDEr, by megabytes, by ms of the image encoder and of a caption."""
    # No pyplot: it keeps global state.
    from matplotlib.figure import Figure as Canvas

    rows = [row for row in _ordered(rows) if row.cider]
    bootstrap = Bootstrap(len(rows[0].cider), seed=0)
    figures = [_figures(row, bootstrap) for row in rows]
    canvas = Canvas(figsize=(15.0, 8.5), layout="constrained")
    panels = canvas.subplots(2, 3, sharey="row")
    times = [latency.get(f"{row.arm} {row.variant}") for row in rows]
    across: dict[str, list[float | None]] = {
        "graphs, MB": [row.graph_bytes / 1e6 for row in rows],
        "image encoder, ms": [one["image"].p50_ms if one else None for one in times],
        "caption, ms": [one["caption"].p50_ms if one else None for one in times],
    }
    for level, (which, label) in enumerate(((0, "R@1 image to text"), (2, "CIDEr"))):
        for panel, (name, xs) in zip(panels[level], across.items(), strict=True):
            _panel(panel, rows, xs, [one[which] for one in figures])
            panel.set_xlabel(name)
        panels[level][0].set_ylabel(label)
    panels[0][0].legend(fontsize=7, loc="lower right")
    canvas.savefig(path, format="png", dpi=110)


def _panel(axes: "Axes", rows: Sequence[Row], xs: Sequence[float | None], ys: Sequence[Figure]) -> None:
    marks = {"onnx-fp32": "o", "onnx-int8": "s", "executorch-fp32": "^", "executorch-int8": "D"}
    colours = {arm: f"C{index}" for index, arm in enumerate(NAMES)}
    for row, x, y in zip(rows, xs, ys, strict=True):
        if x is not None:
            axes.errorbar(
                x,
                y.value,
                yerr=[[y.value - y.low], [y.high - y.value]],
                fmt=marks[row.variant],
                color=colours[row.arm],
                elinewidth=0.6,
                label=f"{NAMES[row.arm]}, {row.variant}",
            )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def _figures(row: Row, bootstrap: Bootstrap) -> tuple[Figure, Figure, Figure]:
    return (
        bootstrap.mean(np.array(row.image_hits)),
        bootstrap.ratio(np.array(row.text_hits), np.array(row.texts)),
        bootstrap.mean(np.array(row.cider)),
    )


def _ordered(rows: Sequence[Row]) -> list[Row]:
    arms = list(NAMES)
    return sorted(rows, key=lambda row: (arms.index(row.arm), row.variant.split("-")[1], row.variant))


def _words(figure: Figure, digits: int, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{figure.value:{plus}.{digits}f} [{figure.low:{plus}.{digits}f}, {figure.high:{plus}.{digits}f}]"
