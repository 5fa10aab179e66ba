"""The gates: figures that a graph must reach before its bundle exists. Pure functions of records."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from pocketlens.core.bundle import GraphRecord, Parity, Quality
from pocketlens.core.errors import ParityGateFailed, SpeedGateFailed
from pocketlens.export.recipe import Gates

__all__ = ["check_parity", "check_quality", "check_speed"]

_REMEDY_PARITY: Final = (
    "Check that calibration pictures resemble the parity pictures, or raise the limit in the recipe's [gates]."
)


def check_parity(graphs: Iterable[GraphRecord], gates: Gates) -> None:
    """Check that every graph that was run answers like the eager student.

    Raises:
        ParityGateFailed: the first graph that does not, with its limit and its figure.
    """
    for graph in graphs:
        if graph.parity is not None:
            name, limit, figure = _limit(graph.precision, graph.parity, gates)
            # Written so that NaN fails.
            if not figure >= limit:
                raise ParityGateFailed(
                    f"{graph.target}-{graph.precision} {graph.role}",
                    expected=f"{graph.parity.metric} of at least {limit:g} ({name})",
                    found=f"{figure:.6f} over {graph.parity.samples} samples",
                    remedy=_REMEDY_PARITY,
                )


def _limit(precision: str, parity: Parity, gates: Gates) -> tuple[str, float, float]:
    """Return the name of the limit, the limit and the figure that it is compared with."""
    if precision == "fp32":
        if parity.metric == "cosine":
            return "fp32_min_cosine", gates.fp32_min_cosine, parity.minimum
        return "fp32_min_token_agreement", gates.fp32_min_token_agreement, parity.mean
    if parity.metric == "cosine":
        return "int8_min_mean_cosine", gates.int8_min_mean_cosine, parity.mean
    return "int8_min_token_agreement", gates.int8_min_token_agreement, parity.mean


def check_speed(graphs: Sequence[GraphRecord], gates: Gates) -> list[GraphRecord]:
    """Return `graphs` with slower quantized ones marked, as far as the recipe accepts them.

    A quantized graph that is slower than its fp32 twin gets a note; it is no longer preferred where
    `graphs` holds the twin.

    Raises:
        SpeedGateFailed: one is slower than `gates.min_speedup` allows and its role is not accepted.
    """
    floats = {(g.engine, g.role) for g in graphs if g.precision == "fp32"}
    return [_checked_speed(graph, gates, twin=(graph.engine, graph.role) in floats) for graph in graphs]


def _checked_speed(graph: GraphRecord, gates: Gates, *, twin: bool) -> GraphRecord:
    speedup = graph.speedup_vs_fp32
    if speedup is None or speedup >= gates.min_speedup:
        return graph
    if not {graph.role, f"{graph.target}-{graph.precision}/{graph.role}"} & set(gates.accept_slower):
        raise SpeedGateFailed(
            f"{graph.target}-{graph.precision} {graph.role}",
            expected=f"at least {gates.min_speedup:g} times the speed of its fp32 twin (min_speedup)",
            found=f"{speedup:.2f} times, measured in turns on this machine",
            remedy=f'Add "{graph.role}" to accept_slower in the recipe\'s [gates] if the size is worth it, '
            "or leave this variant out.",
        )
    note = (
        f"Runs at {speedup:.2f} times the speed of its fp32 twin on the exporting machine; "
        "the recipe accepts that for its size."
    )
    return msgspec.structs.replace(graph, preferred=not (twin and speedup < 1), notes=(*graph.notes, note))


def check_quality(quality: Iterable[Quality], gates: Gates, *, variants: Iterable[str]) -> None:
    """Check that no quantized variant loses more of a task metric than the recipe allows.

    Only metrics in `gates.max_metric_loss` are looked at, where both the variant and `student` have one.

    Raises:
        ParityGateFailed: a variant loses too much.
    """
    figures = {(entry.subject, entry.metric): entry.value for entry in quality}
    for variant in variants:
        for metric, limit in gates.max_metric_loss.items():
            ours, student = figures.get((variant, metric)), figures.get(("student", metric))
            if ours is not None and student is not None and not student - ours <= limit:
                raise ParityGateFailed(
                    f"{variant} {metric}",
                    expected=f"at most {limit:g} below the student's {student:.4f} (max_metric_loss)",
                    found=f"{ours:.4f}",
                    remedy=_REMEDY_PARITY,
                )
