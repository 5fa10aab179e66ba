"""Runs freshly written graphs with the runtime's own engines and fills in their records."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

import msgspec

from pocketlens.core.bundle import Bundle, GraphRecord, Manifest, Role, tree_digest
from pocketlens.core.errors import EngineError
from pocketlens.export.coreml_parity import coreml_parity
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.latency import THREADS, measure_in_turns
from pocketlens.export.lowering import graph_path
from pocketlens.export.parity import measure_parity
from pocketlens.export.quiet import quiet
from pocketlens.export.recipe import split_variant
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.stand_in import Patched, StandIn, eager_answers
from pocketlens.export.targets import open_target
from pocketlens.runtime.engines import ENGINES, Engine, open_engine

if TYPE_CHECKING:
    from pocketlens.runtime.engines import EngineName

__all__ = ["OnError", "OnUnmeasured", "eager_answers", "graph_records", "measured"]

_HEADLINE_ROLE: Final = "image_encoder"
_HEADLINE_SPEEDUP: Final = 1.3


@runtime_checkable
class _Configured(Protocol):
    """A target whose files run with settings of their own."""

    def settings(self, graph: Graph, precision: str) -> dict[str, str]:
        """Return the engine's options for the file of one precision."""
        ...


def graph_records(
    variant: str,
    root: Path,
    graphs: Mapping[Role, Graph],
    *,
    roles: Sequence[Role] | None = None,
    delegations: Mapping[Role, Delegation | None] | None = None,
) -> list[GraphRecord]:
    """Return the records of one variant's files under `root`, without any measurement.

    Args:
        variant: target and precision.
        root: what `graph_path` is relative to.
        graphs: all graphs of the student.
        roles: those that were written; by default all of `graphs`.
        delegations: by role, what an accelerator took over; said in a note.
    """
    name, precision = split_variant(variant)
    target = open_target(name)
    records = []
    for role in graphs if roles is None else roles:
        delegation = (delegations or {}).get(role)
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
                settings=target.settings(graphs[role], precision) if isinstance(target, _Configured) else {},
                notes=(*target.notes(graphs[role]), *((delegation.sentence(),) if delegation else ())),
                tools=target.tools(),
            )
        )
    return records


OnError = Callable[[str, Role, EngineError], None]
"""Called with the variant and role of a graph that does not run, and why."""

OnUnmeasured = Callable[[str, Role, str], None]
"""Called with the variant and role of a graph whose parity stays unknown although its kind is measured, and why."""


def measured(
    records: Mapping[str, Sequence[GraphRecord]],
    roots: Mapping[str, Path],
    *,
    manifest: Manifest,
    reference: Reference,
    rows: Mapping[Role, Feed],
    runs: int,
    progress: Callable[[str], None],
    stand_in: StandIn | None = None,
    on_error: OnError | None = None,
    coreml_samples: int = 0,
    on_unmeasured: OnUnmeasured = lambda variant, role, reason: None,
) -> dict[str, list[GraphRecord]]:
    """Return `records` (by variant) with parity, latency and speed-up filled in.

    Variants whose engine does not run here are returned as they are, but for CoreML's: they get parity
    from an interpreter, and no latency. Precisions of one target are timed in turns, role by role.

    Args:
        records: as `graph_records` returns them; roles may be absent if there is a `stand_in`.
        roots: by variant, the folder that its paths are relative to.
        manifest: gives the layout of captions and tokens.
        reference: the eager student's answers.
        rows: inputs of batch 1 that are timed.
        runs: timed calls of each graph.
        progress: called with a word on what is measured next.
        stand_in: answers for roles that a variant lacks, since a caption needs all of its graphs.
        on_error: told of each graph that does not run; its record is left out.
        coreml_samples: pictures and texts that CoreML graphs are compared on; 0 measures none of them.
        on_unmeasured: told of each CoreML graph that the interpreter cannot run.

    Raises:
        EngineError: a graph does not run, and there is no `on_error`.
    """
    filled = {variant: {record.role: record for record in found} for variant, found in records.items()}
    engines = {
        variant: _open(list(found), roots[variant], manifest)
        for variant, found in records.items()
        if found and found[0].engine in ENGINES
    }
    for variant, engine in engines.items():
        progress(f"parity of {variant}")
        for role in list(filled[variant]):
            try:
                engine.run(role, rows[role])
            except EngineError as error:
                if on_error is None:
                    raise
                on_error(variant, role, error)
                del filled[variant][role]
        if filled[variant]:
            whole = engine if stand_in is None else Patched(engine, frozenset(filled[variant]), stand_in)
            parity = measure_parity(whole, reference, manifest)
            for role, record in filled[variant].items():
                filled[variant][role] = msgspec.structs.replace(record, parity=parity[role])
    for variant, found in records.items():
        if found and found[0].engine == "coreml":
            progress(f"parity of {variant}")
            filled[variant], reasons = coreml_parity(
                filled[variant],
                Bundle(roots[variant], manifest),
                reference=reference,
                rows=rows,
                samples=coreml_samples,
                stand_in=stand_in,
            )
            for role, reason in reasons.items():
                on_unmeasured(variant, role, reason)
    for target in sorted({split_variant(variant)[0] for variant in engines}):
        progress(f"latency of {target}")
        rivals = {v: engine for v, engine in engines.items() if split_variant(v)[0] == target}
        for role in rows:
            calls = {v: partial(engine.run, role, rows[role]) for v, engine in rivals.items() if role in filled[v]}
            for variant, record in _timed({v: filled[v][role] for v in calls}, calls, runs=runs).items():
                filled[variant][role] = record
    return {variant: list(found.values()) for variant, found in filled.items()}


def _timed(
    records: Mapping[str, GraphRecord], calls: Mapping[str, Callable[[], object]], *, runs: int
) -> dict[str, GraphRecord]:
    """Return the records of one target and role, by variant, with latency and speed-up."""
    latencies = measure_in_turns(calls, runs=runs)
    base = next((latency for v, latency in latencies.items() if split_variant(v)[1] == "fp32"), None)
    timed = {}
    for variant, latency in latencies.items():
        twin = base is not None and split_variant(variant)[1] != "fp32"
        speedup = base.p50_ms / latency.p50_ms if twin and base is not None else None
        timed[variant] = _explained(msgspec.structs.replace(records[variant], latency=latency, speedup_vs_fp32=speedup))
    return timed


def _open(records: list[GraphRecord], root: Path, manifest: Manifest) -> Engine:
    chosen = {record.role: record for record in records}
    with quiet():  # an engine's own packages warn while they are imported
        return open_engine(cast("EngineName", records[0].engine), Bundle(root, manifest), chosen, threads=THREADS)


def _explained(record: GraphRecord) -> GraphRecord:
    """Add a note to a statically quantized image encoder that gains little."""
    speedup, quantized = record.speedup_vs_fp32, record.precision == "int8"
    if record.role != _HEADLINE_ROLE or not quantized or speedup is None or not 1 <= speedup < _HEADLINE_SPEEDUP:
        return record
    note = (
        f"Int8 gains {speedup:.2f} times here, on {record.latency.machine if record.latency else 'this CPU'}: "
        "without dot-product instructions (VNNI, NEON dotprod) an 8-bit multiply-add costs three "
        "instructions against one in float, and at this input size fixed costs of each layer weigh as much."
    )
    return msgspec.structs.replace(record, notes=(*record.notes, note))
