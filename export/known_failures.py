"""What a model is known to do badly, drawn from the figures of its own manifest: sentences for its card.

Every rule compares recorded figures; none is a matter of taste. A difference counts where the 95 % intervals
do not overlap.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from pocketlens.core.bundle import GraphRecord, Manifest, Quality
from pocketlens.export.recipe import Gates

__all__ = ["known_failures"]

_STUDENT: Final = "student"
_TEACHER: Final = "teacher"
# By metric: what its share is a share of. Lower is better.
_SHARES: Final = {
    "hallucination": "of the objects that captions name are not in the picture",
    "hallucination_captions": "of the captions name an object that is not in the picture",
    "missed": "of the objects in a picture are not named",
}
_RETRIEVAL: Final = {"r1_i2t": 1, "r5_i2t": 5, "r10_i2t": 10, "r1_t2i": 1, "r5_t2i": 5, "r10_t2i": 10}
# Neither good nor bad by itself.
_NEUTRAL: Final = frozenset({"caption_length"})

_Figures = Mapping[tuple[str, str], Quality]


class _Recipe(msgspec.Struct):
    """The part of the recorded export recipe that is read here; other fields are left alone."""

    gates: Gates = Gates()


def known_failures(manifest: Manifest) -> list[str]:
    """Return whole sentences, the most important first; never empty, for not knowing is a failure too."""
    figures = {(entry.subject, entry.metric): entry for entry in manifest.quality}
    found = [
        *_captions(figures),
        *_chance(figures, manifest.provenance),
        *_worse(figures, _STUDENT, _TEACHER, "The student is worse than its teacher"),
    ]
    for variant in dict.fromkeys(f"{graph.target}-{graph.precision}" for graph in manifest.graphs):
        found += _worse(figures, variant, _STUDENT, f"{variant} is worse than the student")
    found += [*_graphs(manifest.graphs), *_gates(manifest.provenance), *_unknown(manifest, figures)]
    return found or ["None shows in the recorded figures, which cover only what the table of quality names."]


def _captions(figures: _Figures) -> Iterator[str]:
    for metric, what in _SHARES.items():
        entry, teacher = figures.get((_STUDENT, metric)), figures.get((_TEACHER, metric))
        if entry is None or entry.value <= 0:
            continue
        beside = f"; the teacher: {teacher.value:.1%}" if teacher else ""
        yield f"{entry.value:.1%}{_interval(entry)} {what} ({entry.samples} pictures{beside})."


def _chance(figures: _Figures, provenance: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each figure of the student whose interval holds what guessing would reach."""
    entry = figures.get((_STUDENT, "zero_shot"))
    classes = provenance.get("zero_shot_classes", "")
    if entry is not None and not classes.isdecimal():
        yield (
            f"Zero-shot accuracy is {entry.value:.1%}{_interval(entry)}; the number of classes was not recorded, so "
            "whether that is better than guessing does not show here."
        )
    for metric, k in _RETRIEVAL.items():
        retrieval = figures.get((_STUDENT, metric))
        if retrieval is not None and _low(retrieval) <= k / retrieval.samples:
            yield _at_chance(f"Retrieval ({metric})", retrieval, k / retrieval.samples)
    if entry is not None and classes.isdecimal() and _low(entry) <= 1 / int(classes):
        yield _at_chance(f"Zero-shot classification into {classes} classes", entry, 1 / int(classes))


def _at_chance(what: str, entry: Quality, chance: float) -> str:
    return f"{what} is not better than guessing: {entry.value:.1%}{_interval(entry)}, and guessing gives {chance:.1%}."


def _worse(figures: _Figures, subject: str, than: str, opening: str) -> Iterator[str]:
    """Yield one sentence with the metrics in which `subject` lies below `than`, intervals apart."""
    worse = []
    for (who, metric), ours in figures.items():
        theirs = figures.get((than, metric))
        if who != subject or theirs is None or metric in _NEUTRAL:
            continue
        apart = _low(ours) > _high(theirs) if metric in _SHARES else _high(ours) < _low(theirs)
        if apart:
            worse.append(f"{metric} {ours.value:.4g} against {theirs.value:.4g}")
    if worse:
        yield f"{opening} by more than the intervals: {', '.join(worse)}."


def _graphs(graphs: tuple[GraphRecord, ...]) -> Iterator[str]:
    not_run = [f"{graph.target}-{graph.precision}" for graph in graphs if graph.parity is None]
    for variant in dict.fromkeys(not_run):
        yield f"{variant}: {not_run.count(variant)} graphs were never run before they were shipped; see their notes."
    for graph in graphs:
        name = f"{graph.target}-{graph.precision} {graph.role}"
        if graph.speedup_vs_fp32 is not None and graph.speedup_vs_fp32 < 1:
            yield f"{name} is slower than its fp32 twin: {graph.speedup_vs_fp32:.2f} times its speed."
        parity = graph.parity
        if parity is not None and parity.metric == "token_agreement" and parity.mean < 1:
            yield (
                f"{name}: {1 - parity.mean:.1%} of {parity.samples} captions differ from those of the student in fp32."
            )


def _gates(provenance: Mapping[str, str]) -> Iterator[str]:
    """Yield what the export let pass by name, or did not look at."""
    recorded = provenance.get("export_recipe")
    if recorded is None:
        yield "The export recipe was not recorded: which gates the graphs passed is not known."
        return
    try:
        gates = msgspec.json.decode(recorded, type=_Recipe).gates
    except msgspec.MsgspecError:
        yield "The export recipe cannot be read: which gates the graphs passed is not known."
        return
    if gates.accept_slower:
        yield f"The recipe accepted by name that these may be slower than in fp32: {', '.join(gates.accept_slower)}."
    if gates.int8_min_token_agreement <= 0:
        yield "The recipe asked for no agreement of quantized captions with the student's."
    if not gates.max_metric_loss:
        yield "The recipe set no limit to what quantization may cost in any task metric."


def _unknown(manifest: Manifest, figures: _Figures) -> Iterator[str]:
    if not any(subject == _STUDENT for subject, _ in figures):
        yield "The student was not evaluated: how good its answers are is not known."
    if "caption" in manifest.tasks and (manifest.confidence is None or manifest.confidence.fitted_on == 0):
        yield "Confidences come from built-in coefficients; they were not fitted to this model's captions."


def _interval(entry: Quality) -> str:
    return "" if entry.low is None or entry.high is None else f" [{entry.low:.1%}, {entry.high:.1%}]"


def _low(entry: Quality) -> float:
    return entry.value if entry.low is None else entry.low


def _high(entry: Quality) -> float:
    return entry.value if entry.high is None else entry.high
