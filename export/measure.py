"""Runs freshly written graphs with the runtime's own engines and fills in their records."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec

from pocketlens.core.bundle import ROLES, Bundle, GraphRecord, Manifest, Role, tree_digest
from pocketlens.export.graphs import Graph
from pocketlens.export.latency import THREADS, measure_in_turns
from pocketlens.export.lowering import graph_path
from pocketlens.export.parity import measure_parity
from pocketlens.export.quiet import quiet
from pocketlens.export.recipe import split_variant
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.targets import open_target
from pocketlens.runtime.engines import ENGINES, Engine, open_engine

if TYPE_CHECKING:
    from pocketlens.runtime.engines import EngineName

__all__ = ["graph_records", "measured"]

_HEADLINE_ROLE: Final = "image_encoder"
_HEADLINE_SPEEDUP: Final = 1.3


def graph_records(variant: str, root: Path, graphs: Mapping[Role, Graph]) -> list[GraphRecord]:
    """Return the records of one variant's files under `root`, without any measurement."""
    name, precision = split_variant(variant)
    target = open_target(name)
    records = []
    for role in ROLES:
        path = root / graph_path(variant, role)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        records.append(
            GraphRecord(
                role=role,
                target=name,
                precision=precision,
                engine=target.engine,
                path=path.relative_to(root).as_posix(),
                sha256=tree_digest(path),
                bytes=sum(file.stat().st_size for file in files),
                inputs=target.inputs(graphs[role]),
                outputs=target.outputs(graphs[role]),
                notes=target.notes(graphs[role]),
                tools=target.tools(),
            )
        )
    return records


def measured(
    records: Mapping[str, Sequence[GraphRecord]],
    roots: Mapping[str, Path],
    *,
    manifest: Manifest,
    reference: Reference,
    rows: Mapping[Role, Feed],
    runs: int,
    progress: Callable[[str], None],
) -> dict[str, list[GraphRecord]]:
    """Return `records` (by variant) with parity, latency and speed-up filled in.

    Variants whose engine does not run here are returned as they are. Precisions of one target are
    timed in turns, role by role.

    Args:
        records: as `graph_records` returns them.
        roots: by variant, the folder that its paths are relative to.
        manifest: gives the layout of captions and tokens.
        reference: the eager student's answers.
        rows: inputs of batch 1 that are timed.
        runs: timed calls of each graph.
        progress: called with a word on what is measured next.
    """
    engines = {
        variant: _open(list(records[variant]), roots[variant], manifest)
        for variant in records
        if records[variant][0].engine in ENGINES
    }
    filled: dict[str, list[GraphRecord]] = {variant: list(found) for variant, found in records.items()}
    for variant, engine in engines.items():
        progress(f"parity of {variant}")
        assert manifest.caption is not None
        parity = measure_parity(engine, reference, manifest)
        filled[variant] = [msgspec.structs.replace(r, parity=parity[r.role]) for r in filled[variant]]
    for target in sorted({split_variant(variant)[0] for variant in engines}):
        progress(f"latency of {target}")
        rivals = {v: engine for v, engine in engines.items() if split_variant(v)[0] == target}
        for index, role in enumerate(ROLES):
            calls = {v: partial(engine.run, role, rows[role]) for v, engine in rivals.items()}
            latencies = measure_in_turns(calls, runs=runs)
            base = latencies.get(f"{target}-fp32")
            for variant, latency in latencies.items():
                speedup = None
                if base is not None and split_variant(variant)[1] != "fp32":
                    speedup = base.p50_ms / latency.p50_ms
                record = msgspec.structs.replace(filled[variant][index], latency=latency, speedup_vs_fp32=speedup)
                filled[variant][index] = _explained(record)
    return filled


def _open(records: list[GraphRecord], root: Path, manifest: Manifest) -> Engine:
    chosen = {record.role: record for record in records}
    with quiet():  # an engine's own packages warn while they are imported
        return open_engine(cast("EngineName", records[0].engine), Bundle(root, manifest), chosen, threads=THREADS)


def _explained(record: GraphRecord) -> GraphRecord:
    """Add a note to a quantized image encoder that gains little."""
    speedup = record.speedup_vs_fp32
    if record.role != _HEADLINE_ROLE or speedup is None or not 1 <= speedup < _HEADLINE_SPEEDUP:
        return record
    note = (
        f"Int8 gains {speedup:.2f} times here, on {record.latency.machine if record.latency else 'this CPU'}: "
        "without dot-product instructions (VNNI, NEON dotprod) an 8-bit multiply-add costs three "
        "instructions against one in float, and at this input size fixed costs of each layer weigh as much."
    )
    return msgspec.structs.replace(record, notes=(*record.notes, note))
