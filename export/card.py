"""MODEL_CARD.md: the manifest in words and tables."""

from collections.abc import Iterable, Sequence

from pocketlens.core.bundle import GraphRecord, Manifest, Parity, Quality

__all__ = ["model_card"]


def model_card(manifest: Manifest) -> str:
    """Return the card of a bundle as Markdown; it holds nothing that the manifest does not."""
    side = f"{manifest.preprocess.width_px} x {manifest.preprocess.height_px}"
    parts = [
        f"# {manifest.name}",
        f"Version `{manifest.model_version}`, licence {manifest.licence}. "
        f"Tasks: {', '.join(manifest.tasks)}. Input: pictures, made {side} pixels as the manifest says; "
        f"embeddings have {manifest.embedding.dim} dimensions.",
        "## Teachers",
        _table(("teacher", "task", "licence"), [(t.id, t.task, t.licence) for t in manifest.teachers])
        if manifest.teachers
        else "None recorded.",
        "## Quality",
        _quality(manifest.quality) if manifest.quality else "Not evaluated.",
        "## Graphs",
        "Parity is measured against the eager fp32 student on real inputs. Latency is one call at batch 1.",
        _table(
            ("graph", "variant", "MB", "parity (min / mean)", "p50 ms", "p90 ms", "x fp32"),
            [_graph_row(graph) for graph in manifest.graphs],
        ),
        *_notes(manifest.graphs),
        "## Provenance",
        _table(("what", "value"), [(key, f"`{value}`") for key, value in manifest.provenance.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _graph_row(graph: GraphRecord) -> tuple[str, ...]:
    latency = graph.latency
    return (
        graph.role,
        f"{graph.target}-{graph.precision}" + ("" if graph.preferred else " (not preferred)"),
        f"{graph.bytes / 1e6:.2f}",
        _parity(graph.parity),
        f"{latency.p50_ms:.2f}" if latency else "–",
        f"{latency.p90_ms:.2f}" if latency else "–",
        f"{graph.speedup_vs_fp32:.2f}" if graph.speedup_vs_fp32 else "–",
    )


def _parity(parity: Parity | None) -> str:
    if parity is None:
        return "–"
    if parity.metric == "cosine":
        return f"{parity.minimum:.4f} / {parity.mean:.4f}"
    return f"{parity.mean:.1%} of {parity.samples} captions identical"


def _notes(graphs: Iterable[GraphRecord]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for graph in graphs:
        for note in graph.notes:
            notes.setdefault(note, []).append(f"{graph.target}-{graph.precision} {graph.role}")
    lines = [f"- {note} ({', '.join(who)})" for note, who in notes.items()]
    return ["\n".join(lines)] if lines else []


def _quality(quality: Iterable[Quality]) -> str:
    rows = []
    for entry in quality:
        interval = "" if entry.low is None or entry.high is None else f"{entry.low:.4f} to {entry.high:.4f}"
        rows.append((entry.subject, entry.metric, f"{entry.value:.4f}", interval, str(entry.samples)))
    return _table(("subject", "metric", "value", "95 % interval", "samples"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
