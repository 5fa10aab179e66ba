"""Accuracy against size against latency, from all int8 to all float: points, table, data."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pocketlens.core.bundle import Latency, Parity
from pocketlens.export.latency import measure_in_turns
from pocketlens.export.sensitivity.answers import Runner, run_graph, snr_db
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.sensitivity.measure import Sensitivity
from pocketlens.export.sensitivity.quantizer import StaticQuantizer
from pocketlens.export.sensitivity.search import Gate, compare

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["Frontier", "LayerRow", "Point", "measure_frontier", "sensitivity_order"]

_MB: Final = 1e6
_FLOOR_DB: Final = -200.0


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One graph between int8 and float.

    Attributes:
        label: what is in float.
        float_layers: how many.
        float_weights: share of the weight values of all layers that stays in float, 0 to 1.
        parity: cosine to the float graph, worst output, on held-out inputs.
        snr_db: of the worst output, on the same inputs; `None` for the float graph itself.
        size_bytes: of the file.
        latency: wall time of one call with one input.
    """

    label: str
    float_layers: int
    float_weights: float
    parity: Parity
    snr_db: float | None
    size_bytes: int
    latency: Latency


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer as it stands in the data file; see `Sensitivity`. A ratio is `None` where nothing changed."""

    name: str
    operator: str
    weights: int
    alone_db: float | None
    here_db: float | None
    kept_in_float: bool


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one graph, and what the search was given.

    Attributes:
        graph: name of the graph.
        gate: the limit and its statistic, as a text.
        limit: the limit.
        chosen: label of the point that ships; `None` if none passed.
        points: from all int8 to all float.
        layers: in the order of the graph.
    """

    graph: str
    gate: str
    limit: float
    chosen: str | None
    points: tuple[Point, ...]
    layers: tuple[LayerRow, ...]

    def best(self) -> tuple[Point, ...]:
        """Return the points that no other beats in cosine, size and latency at once."""
        return tuple(point for point in self.points if not any(_beats(other, point) for other in self.points))

    def markdown(self, *, worst: int = 10) -> str:
        """Return the frontier and the `worst` layers as two Markdown tables."""
        lines = [
            "| in float | layers | weights | cosine mean | p1 | min | SNR dB | MB | ms p50 | best |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        best = self.best()
        for point in self.points:
            name = f"**{point.label}**" if point.label == self.chosen else point.label
            lines.append(
                f"| {name} | {point.float_layers} | {point.float_weights:.1%} | {point.parity.mean:.4f} "
                f"| {point.parity.p1:.4f} | {point.parity.minimum:.4f} | {_text(point.snr_db)} "
                f"| {point.size_bytes / _MB:.2f} | {point.latency.p50_ms:.2f} | {'yes' if point in best else ''} |"
            )
        lines += ["", "| layer | operator | weights | alone dB | here dB | in float |", "|---|---|---:|---:|---:|---|"]
        for row in sorted(self.layers, key=sensitivity_order)[:worst]:
            kept = "yes" if row.kept_in_float else ""
            ratios = f"{_text(row.alone_db)} | {_text(row.here_db)}"
            lines.append(f"| {row.name} | {row.operator} | {row.weights} | {ratios} | {kept} |")
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write everything as JSON. Infinite ratios (a layer that changes nothing) become null."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def measure_frontier(
    name: str,
    quantizer: StaticQuantizer,
    *,
    sensitivities: Sequence[Sensitivity],
    chosen: Sequence[Layer] | None,
    held_out: "Sequence[Feed]",
    gate: Gate,
    sets: Mapping[str, Sequence[Layer]],
    runs: int = 50,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Frontier:
    """Measure graphs from all int8 to all float, the chosen one among them.

    Args:
        name: how the graph is called in the report.
        quantizer: the calibrated graph.
        sensitivities: of all layers; the most sensitive 1, 2, 4, ... in float are points of their own.
        chosen: what the search keeps in float; `None` where it failed.
        held_out: inputs that neither calibration nor search saw.
        gate: as in the search; its `outputs` count here, too.
        sets: further points, such as `RULES`: a label and the layers that stay in float.
        runs: timed calls of each graph, taken in turns.
        progress: called after each graph.
    """
    ranked = [one.layer for one in sorted(sensitivities, key=lambda one: one.alone_db)]
    asked: dict[str, Sequence[Layer]] = {"nothing": (), **_prefixes(ranked), **sets}
    if chosen is not None:
        asked["chosen"] = chosen
    asked["everything"] = quantizer.layers
    order = sorted(asked, key=lambda label: len(asked[label]))
    expected = run_graph(quantizer.model, held_out)
    weights = sum(layer.weights for layer in quantizer.layers)
    measured: dict[str, tuple[Parity, float, int]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for done, label in enumerate(order, start=1):
        model = quantizer.quantized(asked[label])
        answers = run_graph(model, held_out)
        names = gate.outputs or tuple(expected)
        ratio = min(snr_db(expected[output], answers[output]) for output in names)
        measured[label] = compare(expected, answers, gate), ratio, model.ByteSize()
        calls[label] = partial(Runner(model).run, held_out[0])
        progress("frontier", done, len(order))
    times = measure_in_turns(calls, runs=runs)
    kept = set(chosen or ())
    return Frontier(
        graph=name,
        gate=f"{gate.statistic} cosine >= {gate.cosine:g}",
        limit=gate.cosine,
        chosen=None if chosen is None else "chosen",
        points=tuple(
            Point(
                label=label,
                float_layers=len(asked[label]),
                float_weights=sum(layer.weights for layer in asked[label]) / weights if weights else 0.0,
                parity=measured[label][0],
                snr_db=_finite(measured[label][1]),
                size_bytes=measured[label][2],
                latency=times[label],
            )
            for label in order
        ),
        layers=tuple(
            LayerRow(
                name=one.layer.name,
                operator=one.layer.operator,
                weights=one.layer.weights,
                alone_db=_finite(one.alone_db),
                here_db=None if one.here_db is None else _finite(one.here_db),
                kept_in_float=one.layer in kept,
            )
            for one in sensitivities
        ),
    )


def sensitivity_order(row: LayerRow) -> float:
    """Return the key that sorts the most sensitive layer first."""
    return math.inf if row.alone_db is None else row.alone_db


def _finite(ratio_db: float) -> float | None:
    """Return what JSON can hold: nothing for no noise, a floor for no signal."""
    return None if ratio_db == math.inf else max(ratio_db, _FLOOR_DB)


def _text(ratio_db: float | None) -> str:
    return "" if ratio_db is None else f"{ratio_db:.1f}"


def _prefixes(ranked: Sequence[Layer]) -> dict[str, Sequence[Layer]]:
    """Return the most sensitive 1, 2, 4, ... layers, less than all, by label."""
    counts = [2**power for power in range(len(ranked).bit_length()) if 2**power < len(ranked)]
    return {f"{count} most sensitive": ranked[:count] for count in counts}


def _beats(other: Point, point: Point) -> bool:
    pairs = (
        (-other.parity.mean, -point.parity.mean),
        (float(other.size_bytes), float(point.size_bytes)),
        (other.latency.p50_ms, point.latency.p50_ms),
    )
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
