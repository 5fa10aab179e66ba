"""MODEL_CARD.md: the manifest in words and tables, for people who have to decide whether to use the model.

The sections are those of "Model Cards for Model Reporting" (Mitchell et al., 2019, arXiv 1810.03993) as far as a
manifest can fill them, and what a card for devices needs besides: sizes, latencies and parity of every graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pocketlens.core.bundle import ROLES, GraphRecord, Manifest, Parity, Quality
from pocketlens.export.known_failures import known_failures
from pocketlens.export.licences import Conflict, licence_conflicts, restrictions

__all__ = ["model_card"]

_OUT_OF_SCOPE: Final = (
    "Recognising who a person is, or judging people by their pictures: nothing here was trained or tested for it.",
    "Decisions on which health, safety, law or money depend.",
    "Captions as statements of fact, or as the only description of a picture, without a person who checks them.",
    "Pictures and texts of another kind or language than the data named below: no figure here holds for them.",
    "Comparing its vectors with those of another model version.",
)
_PARITY_PROVES: Final = (
    "Parity compares a graph with the eager fp32 student on real inputs, run on the machine that exported it. It shows "
    "that weights, structure and quantization are as meant. It does not show how another processor rounds: "
    "`pocketlens verify` on the device does, by the golden files in this bundle. A graph without parity was not run."
)
_PARITY_COREML: Final = (
    "For CoreML it is measured on the saved package, read back and run by an interpreter of its operators: that shows "
    "weights and structure. What CoreML itself makes of the package only an Apple device can show."
)


def model_card(manifest: Manifest) -> str:
    """Return the card of a bundle as Markdown; it holds nothing that the manifest does not, except its conclusions."""
    side = f"{manifest.preprocess.width_px} x {manifest.preprocess.height_px}"
    data = {key: value for key, value in manifest.provenance.items() if key.startswith("data")}
    rest = {key: value for key, value in manifest.provenance.items() if key not in data}
    parts = [
        f"# {manifest.name}",
        f"Version `{manifest.model_version}`, licence {manifest.licence}. "
        f"Tasks: {', '.join(manifest.tasks)}. Input: pictures, made {side} pixels as the manifest says; "
        f"embeddings have {manifest.embedding.dim} dimensions.",
        *_warning(licence_conflicts(manifest)),
        "## Intended use",
        _list(_intended(manifest)),
        "## Out of scope",
        _list(_OUT_OF_SCOPE),
        "## Known failures",
        _list(known_failures(manifest)),
        "## Teachers and licences",
        _teachers(manifest),
        *_commercial(manifest),
        "## Data",
        _values(data) if data else "Not recorded.",
        "## Quality",
        _quality(manifest.quality) if manifest.quality else "Not evaluated.",
        "## Sizes and latencies",
        *_targets(manifest.graphs),
        "## Parity",
        _PARITY_PROVES,
        *([_PARITY_COREML] if any(graph.engine == "coreml" and graph.parity for graph in manifest.graphs) else []),
        _table(
            ("graph", "variant", "MB", "metric", "min / 1 % / mean", "samples", "p50 ms", "p90 ms", "x fp32"),
            map(_graph_row, manifest.graphs),
        ),
        *_notes(manifest.graphs),
        "## Tool versions",
        _tools(manifest.graphs),
        "## Provenance",
        _values(rest) if rest else "Not recorded.",
    ]
    return "\n\n".join(parts) + "\n"


def _warning(conflicts: Sequence[Conflict]) -> list[str]:
    if not conflicts:
        return []
    lines = ["**Warning: licence conflict.** Do not publish or sell this bundle before it is settled.", ""]
    return ["\n".join(f"> {line}".rstrip() for line in (*lines, *(f"- {conflict}" for conflict in conflicts)))]


def _intended(manifest: Manifest) -> list[str]:
    uses = []
    if "embed" in manifest.tasks:
        uses.append("Finding pictures by text and by picture, offline, by the cosine of embeddings.")
    if "caption" in manifest.tasks:
        uses.append("Suggesting short captions, offline, with a confidence by which weak ones can be withheld.")
    data = manifest.provenance.get("data")
    kind = f"what it was trained on: {data}" if data else "its training data (not recorded)"
    return [*uses, f"Pictures that resemble {kind}."]


def _teachers(manifest: Manifest) -> str:
    if not manifest.teachers:
        return "None recorded."
    rows = [(teacher.id, teacher.task, teacher.licence, _asked(teacher.licence)) for teacher in manifest.teachers]
    return _table(
        ("who", "task", "licence", "restrictions"),
        [*rows, ("this bundle", ", ".join(manifest.tasks), manifest.licence, _asked(manifest.licence))],
    )


def _asked(licence: str) -> str:
    return ", ".join(sorted(restrictions(licence))) or "none"


def _commercial(manifest: Manifest) -> list[str]:
    missing = [
        *([] if manifest.teachers else ["No teacher is recorded."]),
        *([] if "data_licence" in manifest.provenance else ["The licence of the training data is not recorded."]),
    ]
    conflicts = licence_conflicts(manifest, commercial=True)
    if not conflicts:
        opening = "Nothing that is recorded stands against commercial use; a check against oversight, no legal advice."
        return [" ".join([opening, *missing])]
    opening = "Not for commercial use, as far as the recorded licences say:"
    return [opening, _list([*map(str, conflicts), *missing])]


def _targets(graphs: Sequence[GraphRecord]) -> list[str]:
    """Return a table with a row for each variant, and what its figures mean."""
    variants: dict[str, dict[str, GraphRecord]] = {}
    for graph in graphs:
        variants.setdefault(f"{graph.target}-{graph.precision}", {})[graph.role] = graph
    roles = [role for role in ROLES if any(role in found for found in variants.values())]
    rows = []
    for variant, found in variants.items():
        size = sum(graph.bytes for graph in found.values())
        rows.append((variant, f"{size / 1e6:.2f}", *(_p50(found.get(role)) for role in roles)))
    machines = sorted({f"{g.latency.machine}, threads: {g.latency.threads}" for g in graphs if g.latency})
    return [
        "One call at batch 1, median in milliseconds"
        + (f", on {'; '.join(machines)}. " if machines else ". ")
        + "A caption of n tokens takes one picture, one prefill and n decode steps. – means that it was not measured.",
        _table(("variant", "MB", *(f"{role} ms" for role in roles)), rows),
    ]


def _p50(graph: GraphRecord | None) -> str:
    return f"{graph.latency.p50_ms:.2f}" if graph is not None and graph.latency else "–"


def _graph_row(graph: GraphRecord) -> tuple[str, ...]:
    latency, parity = graph.latency, graph.parity
    return (
        graph.role,
        f"{graph.target}-{graph.precision}" + ("" if graph.preferred else " (not preferred)"),
        f"{graph.bytes / 1e6:.2f}",
        *_parity(parity),
        f"{latency.p50_ms:.2f}" if latency else "–",
        f"{latency.p90_ms:.2f}" if latency else "–",
        f"{graph.speedup_vs_fp32:.2f}" if graph.speedup_vs_fp32 else "–",
    )


def _parity(parity: Parity | None) -> tuple[str, str, str]:
    if parity is None:
        return "–", "–", "–"
    if parity.metric == "cosine":
        return "cosine", f"{parity.minimum:.6f} / {parity.p1:.6f} / {parity.mean:.6f}", str(parity.samples)
    return "identical captions", f"{parity.mean:.1%}", str(parity.samples)


def _notes(graphs: Iterable[GraphRecord]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for graph in graphs:
        for note in graph.notes:
            notes.setdefault(note, []).append(f"{graph.target}-{graph.precision} {graph.role}")
    return [_list(f"{note} ({', '.join(who)})" for note, who in notes.items())] if notes else []


def _quality(quality: Sequence[Quality]) -> str:
    """Return a table with a row for each metric and a column for each subject: value and 95 % interval."""
    subjects = list(dict.fromkeys(entry.subject for entry in quality))
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for entry in quality:
        cell = f"{entry.value:.4f}"
        if entry.low is not None and entry.high is not None:
            cell += f" [{entry.low:.4f}, {entry.high:.4f}]"
        rows.setdefault((entry.metric, entry.samples), {})[entry.subject] = cell
    return "In brackets: 95 % interval.\n\n" + _table(
        ("metric", "samples", *subjects),
        [(metric, str(n), *(cells.get(subject, "–") for subject in subjects)) for (metric, n), cells in rows.items()],
    )


def _tools(graphs: Iterable[GraphRecord]) -> str:
    versions: dict[tuple[str, str], list[str]] = {}
    for graph in graphs:
        for tool, version in graph.tools.items():
            targets = versions.setdefault((tool, version), [])
            if graph.target not in targets:
                targets.append(graph.target)
    if not versions:
        return "Not recorded."
    return _table(
        ("tool", "version", "targets"),
        [(tool, version, ", ".join(targets)) for (tool, version), targets in sorted(versions.items())],
    )


def _values(entries: Mapping[str, str]) -> str:
    return _table(("what", "value"), [(key, f"`{value}`") for key, value in entries.items()])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
