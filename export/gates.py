"""The gates: figures that a graph must reach before its bundle exists. Pure functions of records."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from pocketlens.core.bundle import GraphRecord, Parity, Quality, Role
from pocketlens.core.errors import ParityGateFailed, SpeedGateFailed
from pocketlens.export.recipe import Gates, is_float, split_variant

__all__ = [
    "check_parity",
    "check_quality",
    "check_speed",
    "failed_cosine",
    "mark_slower",
    "parity_failure",
    "quality_failure",
    "speed_failure",
]

_REMEDY_PARITY: Final = (
    "Check that calibration pictures resemble the parity pictures, or raise the limit in the recipe's [gates]."
)
_LOWER_IS_BETTER: Final = "hallucination"
_METRICS: Final = {
    "recall_loss": re.compile(r"r\d+_(i2t|t2i)"),
    "cider_loss": re.compile("cider"),
    "hallucination_rise": re.compile("hallucination.*"),
}
_FIELDS: Final = ("min_cosine", "p1_cosine", "mean_cosine", "token_agreement")


def check_parity(graphs: Iterable[GraphRecord], gates: Gates) -> None:
    """Check that every graph that was run answers like the eager student.

    Raises:
        ParityGateFailed: the first graph that does not, with its limit and its figure.
    """
    for graph in graphs:
        failure = parity_failure(graph, gates)
        if failure is not None:
            raise failure


def parity_failure(graph: GraphRecord, gates: Gates) -> ParityGateFailed | None:
    """Return why `graph` does not answer enough like the eager student.

    `None` if it does, or if it was not run and the recipe does not insist (`require_parity`).
    """
    if graph.parity is None:
        return _unmeasured(graph, gates)
    for _, name, limit, figure in _limits(graph, graph.parity, gates):
        # Written so that NaN fails.
        if not figure >= limit:
            return ParityGateFailed(
                f"{_variant(graph)} {graph.role}",
                expected=f"{graph.parity.metric} of at least {limit:g} ({name})",
                found=f"{figure:.6f} over {graph.parity.samples} samples",
                remedy=_REMEDY_PARITY,
            )
    return None


def failed_cosine(graph: GraphRecord, gates: Gates) -> tuple[str, float] | None:
    """Return field (`mean_cosine`) and value of the first limit of a cosine that `graph` does not reach."""
    if graph.parity is None:
        return None
    for field, _, limit, figure in _limits(graph, graph.parity, gates):
        if field != "token_agreement" and not figure >= limit:
            return field, limit
    return None


def _unmeasured(graph: GraphRecord, gates: Gates) -> ParityGateFailed | None:
    variant = _variant(graph)
    if not {graph.target, graph.precision, variant, f"{variant}/{graph.role}"} & set(gates.require_parity):
        return None
    return ParityGateFailed(
        f"{variant} {graph.role}",
        expected="a measured parity (require_parity)",
        found=graph.notes[-1] if graph.notes else f"none: nothing on this machine runs {graph.engine}",
        remedy="Export where its engine runs, or take it out of require_parity in the recipe's [gates].",
    )


def _limits(graph: GraphRecord, parity: Parity, gates: Gates) -> Iterable[tuple[str, str, float, float]]:
    """Yield the field and the name of each limit of `graph`, the limit, and the figure that it is compared with."""
    agreement = parity.metric == "token_agreement"
    figures = {
        "min_cosine": parity.minimum,
        "p1_cosine": parity.p1,
        "mean_cosine": parity.mean,
        "token_agreement": parity.mean,
    }
    for field in _FIELDS:
        if (field == "token_agreement") != agreement:
            continue
        found = _own_limit(graph, field, gates) or _default_limit(graph.precision, field, gates)
        if found is not None:
            yield (field, *found, figures[field])


def _own_limit(graph: GraphRecord, field: str, gates: Gates) -> tuple[str, float] | None:
    for name in (f"{_variant(graph)}/{graph.role}", _variant(graph), graph.precision):
        value = getattr(gates.limits.get(name), field, None)
        if value is not None:
            return f"limits.{name}.{field}", value
    return None


def _default_limit(precision: str, field: str, gates: Gates) -> tuple[str, float] | None:
    kind = precision if is_float(precision) else "int8"
    names = {
        ("fp32", "min_cosine"): "fp32_min_cosine",
        ("fp32", "token_agreement"): "fp32_min_token_agreement",
        ("fp16", "mean_cosine"): "fp16_min_mean_cosine",
        ("fp16", "token_agreement"): "int8_min_token_agreement",
        ("int8", "mean_cosine"): "int8_min_mean_cosine",
        ("int8", "token_agreement"): "int8_min_token_agreement",
    }
    name = names.get((kind, field))
    return None if name is None else (name, getattr(gates, name))


def check_speed(graphs: Sequence[GraphRecord], gates: Gates) -> list[GraphRecord]:
    """Return `graphs` with slower ones marked, as far as the recipe accepts them; see `mark_slower`.

    Raises:
        SpeedGateFailed: one is slower than `gates.min_speedup` allows and is not accepted.
    """
    for graph in graphs:
        failure = speed_failure(graph, gates)
        if failure is not None:
            raise failure
    return mark_slower(graphs, gates)


def speed_failure(graph: GraphRecord, gates: Gates) -> SpeedGateFailed | None:
    """Return why `graph` is too slow; `None` if it is not, was not timed, is fp16, or is accepted."""
    speedup, variant = graph.speedup_vs_fp32, _variant(graph)
    if speedup is None or speedup >= gates.min_speedup or is_float(graph.precision):
        return None
    if {graph.role, variant, f"{variant}/{graph.role}"} & set(gates.accept_slower):
        return None
    return SpeedGateFailed(
        f"{variant} {graph.role}",
        expected=f"at least {gates.min_speedup:g} times the speed of its fp32 twin (min_speedup)",
        found=f"{speedup:.2f} times, measured in turns on this machine",
        remedy=f'Add "{graph.role}" to accept_slower in the recipe\'s [gates] if the size is worth it, '
        "or leave this variant out.",
    )


def mark_slower(graphs: Sequence[GraphRecord], gates: Gates) -> list[GraphRecord]:
    """Return `graphs` with a note at each that is slower than its fp32 twin.

    Such a graph is no longer preferred where `graphs` holds the twin.
    """
    floats = {(g.engine, g.role) for g in graphs if g.precision == "fp32"}
    return [_marked(graph, gates, twin=(graph.engine, graph.role) in floats) for graph in graphs]


def _marked(graph: GraphRecord, gates: Gates, *, twin: bool) -> GraphRecord:
    speedup = graph.speedup_vs_fp32
    limit = 1.0 if is_float(graph.precision) else gates.min_speedup
    if speedup is None or speedup >= limit:
        return graph
    excuse = "" if is_float(graph.precision) else "; the recipe accepts that for its size"
    note = f"Runs at {speedup:.2f} times the speed of its fp32 twin on the exporting machine{excuse}."
    return msgspec.structs.replace(graph, preferred=not (twin and speedup < 1), notes=(*graph.notes, note))


def check_quality(quality: Iterable[Quality], gates: Gates, *, variants: Iterable[str]) -> None:
    """Check that no variant loses more of a task metric than the recipe allows; see `quality_failure`.

    Raises:
        ParityGateFailed: a variant loses too much.
    """
    figures = tuple(quality)
    for variant in variants:
        failure = quality_failure(figures, gates, variant=variant)
        if failure is not None:
            raise failure


def quality_failure(
    quality: Iterable[Quality], gates: Gates, *, variant: str, role: Role | None = None
) -> ParityGateFailed | None:
    """Return which task metric `variant` loses too much of; `None` if it loses none.

    Only metrics that both the variant and `student` have are looked at.

    Args:
        quality: what was measured.
        gates: the limits.
        variant: `onnx-int8`.
        role: judge this graph by the limits of its own, `limits."onnx-int8/image_encoder"`: by figures of
            the subject `onnx-int8/image_encoder` where there are any, else by those of its variant. By
            default the variant is judged, by the limits of its name and its precision and, if it is not
            fp32, by `max_metric_loss`.
    """
    figures = {(entry.subject, entry.metric): entry.value for entry in quality}
    name = variant if role is None else f"{variant}/{role}"
    for (subject, metric), student in figures.items():
        if subject != "student":
            continue
        ours = figures.get((name, metric), figures.get((variant, metric)))
        for source, limit in _metric_limits(metric, gates, variant, role):
            worse = metric.startswith(_LOWER_IS_BETTER)
            # Written so that NaN fails.
            if ours is not None and not (ours - student if worse else student - ours) <= limit:
                side = "above" if worse else "below"
                return ParityGateFailed(
                    f"{name} {metric}",
                    expected=f"at most {limit:g} {side} the student's {student:.4f} ({source})",
                    found=f"{ours:.4f}",
                    remedy=_REMEDY_PARITY,
                )
    return None


def _metric_limits(metric: str, gates: Gates, variant: str, role: Role | None) -> Iterable[tuple[str, float]]:
    """Yield the name of each limit of `metric`, and the limit."""
    precision = split_variant(variant)[1]
    if role is None and metric in gates.max_metric_loss and precision != "fp32":
        yield "max_metric_loss", gates.max_metric_loss[metric]
    field = next((field for field, pattern in _METRICS.items() if pattern.fullmatch(metric)), None)
    if field is None:
        return
    for name in (variant, precision) if role is None else (f"{variant}/{role}",):
        value = getattr(gates.limits.get(name), field, None)
        if value is not None:
            yield f"limits.{name}.{field}", value
            return


def _variant(graph: GraphRecord) -> str:
    return f"{graph.target}-{graph.precision}"
