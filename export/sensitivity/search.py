"""The fewest layers in float that pass a gate: ranked by sensitivity, found by bisection, verified."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import onnx

from pocketlens.core.bundle import Parity
from pocketlens.core.errors import DataError, ParityGateFailed, RecipeError
from pocketlens.export.parity import cosines, parity_of
from pocketlens.export.sensitivity.answers import Answers, run_graph
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.sensitivity.measure import Progress, Sensitivity, measure_layers
from pocketlens.export.sensitivity.quantizer import StaticQuantizer

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["Gate", "MixedPrecision", "compare", "fewest_float_layers"]

_RANKING_FEEDS: Final = 8
_TIGHTENINGS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the int8 graph must reach against the float graph on held-out inputs.

    Attributes:
        cosine: the limit.
        statistic: of the cosines of all inputs, which one is compared.
        outputs: which outputs count; the worst decides. `None` means all of them.

    Raises:
        RecipeError: a limit outside 0 to 1.
    """

    cosine: float = 0.99
    statistic: Literal["mean", "p1", "minimum"] = "mean"
    outputs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.cosine < 1.0:
            raise RecipeError(
                "gate of the mixed precision search",
                expected="a cosine between 0 and 1, both excluded",
                found=f"{self.cosine:g}",
                remedy="0.99 is a usual limit.",
            )

    def figure(self, parity: Parity) -> float:
        """Return the figure of `parity` that the limit is for."""
        return float(getattr(parity, self.statistic))


@dataclass(frozen=True)
class MixedPrecision:
    """The result of a search.

    Attributes:
        float_layers: what stays in float, the most sensitive first; empty if plain int8 passes.
        sensitivities: of all layers, in the order of the graph.
        search: parity on the inputs that the search looked at.
        held_out: parity on inputs that it did not.
        tried: by number of the most sensitive layers in float, the figure on the search's inputs.
    """

    float_layers: tuple[Layer, ...]
    sensitivities: tuple[Sensitivity, ...]
    search: Parity
    held_out: Parity
    tried: dict[int, float]

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """Names for `nodes_to_exclude` of ONNX Runtime's `quantize_static`."""
        return tuple(name for layer in self.float_layers for name in layer.nodes)

    @property
    def ranked(self) -> tuple[Sensitivity, ...]:
        """The sensitivities, the most sensitive layer first."""
        return _ranked(self.sensitivities)


def fewest_float_layers(
    quantizer: StaticQuantizer,
    *,
    search: "Sequence[Feed]",
    held_out: "Sequence[Feed]",
    gate: Gate,
    sensitivities: Sequence[Sensitivity] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> MixedPrecision:
    """Return the smallest set of float layers, found greedily, with which the int8 graph passes `gate`.

    1. Each layer is quantized alone; the SNR at the graph's outputs ranks them.
    2. Bisection finds how many of the most sensitive must stay in float to pass on `search`.
    3. Chunks of these, then single layers, go back to int8 wherever the gate still holds: the ranking
       does not know how errors of several layers cancel or add up.
    4. The result is verified on `held_out`. Where it fails there, the search's limit is moved half
       way to 1 and the search repeated, four times at most. Held-out inputs say yes or no, nothing else.

    The set is minimal in this sense: none of its layers can return to int8 alone. That no smaller
    set of other layers exists is not proven; there are 2^n sets.

    Args:
        quantizer: the calibrated graph.
        search: real inputs to rank and search on; those of the calibration serve.
        held_out: other real inputs.
        gate: what to reach.
        sensitivities: what `measure_layers` returned for `quantizer`; measured here if `None`.
        progress: called as the search goes on.

    Raises:
        DataError: no inputs, `held_out` repeats one of `search`, or `sensitivities` of another graph.
        ParityGateFailed: nothing short of fp32 passes; names the worst layer.
        RecipeError: the gate names an output that the graph does not have.
    """
    _check_held_out(search, held_out)
    _check_outputs(gate, [value.name for value in quantizer.model.graph.output])
    if sensitivities is None:
        sensitivities = measure_layers(quantizer, search[:_RANKING_FEEDS], progress=progress)
    measured = tuple(sensitivities)
    _check_sensitivities(measured, quantizer)
    seen = _Judge(quantizer.model, search, gate)
    unseen = _Judge(quantizer.model, held_out, gate)
    ranked = [one.layer for one in _ranked(measured)]
    tried: dict[int, float] = {}
    limit = gate.cosine
    best: tuple[float, int] = (-1.0, 0)
    for _ in range(_TIGHTENINGS + 1):
        chosen = _search(quantizer, ranked, seen, limit, tried, progress)
        model = quantizer.quantized(chosen)
        verdict = unseen.parity(model)
        best = max(best, (gate.figure(verdict), len(chosen)))
        if chosen and not any(layer.weights for layer in set(ranked) - set(chosen)):
            break  # additions alone in int8 are no int8 graph
        if gate.figure(verdict) >= gate.cosine:
            return MixedPrecision(tuple(chosen), measured, seen.parity(model), verdict, dict(sorted(tried.items())))
        limit = (1.0 + limit) / 2
    raise _failed(quantizer.name, gate, measured, tried, best)


def compare(expected: Answers, found: Answers, gate: Gate) -> Parity:
    """Return the parity of the output that `gate` likes least."""
    names = gate.outputs or tuple(expected)
    parities = [parity_of("cosine", cosines(found[name], expected[name])) for name in names]
    return min(parities, key=gate.figure)


class _Judge:
    """Compares int8 graphs with the float graph on fixed inputs."""

    def __init__(self, model: onnx.ModelProto, feeds: "Sequence[Feed]", gate: Gate) -> None:
        self._feeds, self._gate = feeds, gate
        self._expected = run_graph(model, feeds)

    def parity(self, model: onnx.ModelProto) -> Parity:
        return compare(self._expected, run_graph(model, self._feeds), self._gate)

    def figure(self, model: onnx.ModelProto) -> float:
        return self._gate.figure(self.parity(model))


def _search(
    quantizer: StaticQuantizer,
    ranked: Sequence[Layer],
    judge: _Judge,
    limit: float,
    tried: dict[int, float],
    progress: Progress,
) -> list[Layer]:
    """Return layers that pass `limit` in float; all of `ranked` if nothing less does."""

    def first(count: int) -> float:
        if count not in tried:
            tried[count] = judge.figure(quantizer.quantized(ranked[:count]))
            progress(f"{count} layers in float: {tried[count]:.4f}", 0, 0)
        return tried[count]

    if first(0) >= limit:
        return []
    fails, passes = 0, len(ranked)
    while passes - fails > 1:
        middle = (fails + passes) // 2
        if first(middle) >= limit:
            passes = middle
        else:
            fails = middle
    chosen = list(ranked[:passes])
    if passes == len(ranked):
        return chosen
    return _prune(chosen, lambda layers: judge.figure(quantizer.quantized(layers)) >= limit, progress)


def _prune(chosen: list[Layer], holds: Callable[[Sequence[Layer]], bool], progress: Progress) -> list[Layer]:
    """Return `chosen` without what `holds` does not need: halves first, single layers last.

    The scheme of delta debugging (Zeller and Hildebrandt 2002, "Simplifying and isolating
    failure-inducing input", algorithm ddmin), from the least sensitive layer on.
    """
    size = max(1, len(chosen) // 2)
    while chosen:
        dropped = False
        for start in reversed(range(0, len(chosen), size)):
            rest = chosen[:start] + chosen[start + size :]
            if holds(rest):
                chosen, dropped = rest, True
        progress(f"{len(chosen)} layers in float after pruning", 0, 0)
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return chosen


def _ranked(sensitivities: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    return tuple(sorted(sensitivities, key=lambda one: one.alone_db))


def _check_held_out(search: "Sequence[Feed]", held_out: "Sequence[Feed]") -> None:
    for name, feeds in (("search", search), ("held-out", held_out)):
        if not feeds:
            raise DataError(
                f"{name} inputs", expected="at least one", found="none", remedy="Name real pictures for it."
            )
    known = {_content(feed) for feed in search}
    repeated = sum(_content(feed) in known for feed in held_out)
    if repeated:
        raise DataError(
            "held-out inputs",
            expected="none that the search sees as well",
            found=f"{repeated} of {len(held_out)}",
            remedy="Split the pictures: a graph that is judged on what it was fitted to looks better than it is.",
        )


def _check_outputs(gate: Gate, outputs: Sequence[str]) -> None:
    for name in gate.outputs or ():
        if name not in outputs:
            raise RecipeError(
                "gate of the mixed precision search",
                expected=f"outputs out of {', '.join(outputs)}",
                found=name,
                remedy="Correct the name.",
            )


def _check_sensitivities(sensitivities: Sequence[Sensitivity], quantizer: StaticQuantizer) -> None:
    if {one.layer for one in sensitivities} != set(quantizer.layers):
        raise DataError(
            f"sensitivities for {quantizer.name}",
            expected=f"one for each of its {len(quantizer.layers)} layers",
            found=f"{len(sensitivities)}, or some of another graph",
            remedy="Measure them with the same quantizer.",
        )


def _content(feed: "Feed") -> tuple[tuple[str, bytes], ...]:
    return tuple((name, np.ascontiguousarray(value).tobytes()) for name, value in sorted(feed.items()))


def _failed(
    name: str, gate: Gate, sensitivities: Sequence[Sensitivity], tried: dict[int, float], best: tuple[float, int]
) -> ParityGateFailed:
    worst = _ranked(sensitivities)[0]
    figure, count = best
    return ParityGateFailed(
        f"int8 of {name}, mixed precision",
        expected=f"{gate.statistic} cosine of at least {gate.cosine:g} with fewer than all {len(sensitivities)} "
        "layers in float",
        found=f"{tried[0]:.4f} with none and {figure:.4f} with {count} in float (held out); the worst layer is "
        f"{worst.layer.name} ({worst.layer.operator}), {worst.alone_db:.1f} dB when it alone is int8",
        remedy="Ship this graph in fp32 or fp16, lower the limit, or try other settings: docs/mixed-precision.md.",
    )
