"""What an export does about a graph that fails its parity gate: mixed precision, or the name of its worst layer.

Static int8 in ONNX and ExecuTorch: the fewest layers in float that pass are searched on the ONNX form, and the graph
is written again. The frontier of accuracy, size and latency goes into a folder beside the build. A graph in dynamic
int8 or 4 bits has no choice of layers; its worst one is found by transplanting each into the float graph.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import onnx

from pocketlens.core.bundle import GraphRecord, Role
from pocketlens.core.errors import ParityGateFailed, PocketlensError
from pocketlens.export.delegation import Delegation
from pocketlens.export.gates import failed_cosine
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import Progress
from pocketlens.export.recipe import ExportRecipe, Gates
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.sensitivity.frontier import measure_frontier
from pocketlens.export.sensitivity.layers import RULES, Layer
from pocketlens.export.sensitivity.measure import Sensitivity, measure_layers
from pocketlens.export.sensitivity.plot import plot_frontier
from pocketlens.export.sensitivity.quantizer import StaticQuantizer
from pocketlens.export.sensitivity.search import Gate, MixedPrecision, fewest_float_layers
from pocketlens.export.sensitivity.transplant import measure_transplants
from pocketlens.export.targets.executorch_static import write_mixed_program
from pocketlens.export.targets.onnx_float import write_float
from pocketlens.export.targets.onnx_static import static_quantizer, write_mixed_int8

__all__ = ["Mixing", "Rewritten"]

_STATISTICS: Final[dict[str, Literal["minimum", "p1", "mean"]]] = {
    "min_cosine": "minimum",
    "p1_cosine": "p1",
    "mean_cosine": "mean",
}
_OUTPUTS: Final[dict[Role, tuple[str, ...]]] = {
    "image_encoder": ("embedding",),
    "text_encoder": ("embedding",),
    "caption_prefill": ("cache",),
}
"""What the parity of a graph is measured on. Captions are compared as a whole: their decode step is not searched."""

_TRANSPLANTED: Final = ("int8_dynamic", "int8_blocks", "int4")
_RANKING: Final = 8
_SEARCHED: Final = 32
_HELD_OUT: Final = 256
_NAMED: Final = 12


class Rewritten(NamedTuple):
    """A note for the record of a graph that was written again; what XNNPACK took over, for an ExecuTorch program."""

    note: str
    delegation: Delegation | None


@dataclass(frozen=True)
class _Search:
    """What a search came to; `found` is `None` where `failure` says why."""

    quantizer: StaticQuantizer
    sensitivities: tuple[Sensitivity, ...]
    found: MixedPrecision | None
    failure: ParityGateFailed | None


class Mixing:
    """Searches, writes again and explains, one graph after the other.

    Args:
        recipe: its gates, and what it allows.
        graphs: of the student.
        feeds: calibration inputs of batch 1 by role.
        reference: the inputs that parity is measured on: they say yes or no to what a search found.
        folder: for float graphs; gone with the build.
        twins: ONNX graphs in fp32 that are there already, by role.
        reports: where frontiers are written; made when there is one.
        progress: called as a search goes on.
    """

    def __init__(
        self,
        recipe: ExportRecipe,
        graphs: Mapping[Role, Graph],
        *,
        feeds: Mapping[Role, list[Feed]],
        reference: Reference,
        folder: Path,
        twins: Mapping[Role, Path],
        reports: Path,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._graphs = graphs
        self._feeds = feeds
        self._reference = reference
        self._folder = folder
        self._twins = twins
        self._reports = reports
        self._progress = progress
        self._searches: dict[tuple[Role, Gate], _Search] = {}

    def rewritten(self, record: GraphRecord, path: Path) -> Rewritten | None:
        """Write the graph of `record`, which failed its gate, again with layers in float; say which.

        `None` if nothing was changed: the recipe says so, the graph is none of static int8, what it fails
        is no cosine, or nothing short of float passes. `explained` tells the reason.
        """
        gate = _gate(record, self._recipe.gates)
        if self._recipe.mixed_precision == "off" or gate is None:
            return None
        try:
            search = self._search(record.role, gate)
            found = search.found
            if found is None or not found.float_layers:
                return None
            delegation = None
            if record.target == "onnx":
                write_mixed_int8(record.role, search.quantizer, found.float_layers, path)
            else:
                delegation = write_mixed_program(
                    self._graphs[record.role],
                    path,
                    self._feeds[record.role],
                    layers=search.quantizer.layers,
                    float_layers=found.float_layers,
                )
        except PocketlensError:
            return None  # the graph is as it was, and its gate says what is wrong with it
        return Rewritten(_note(found, search.quantizer, executorch=record.target != "onnx"), delegation)

    def explained(self, record: GraphRecord, path: Path, failure: ParityGateFailed) -> ParityGateFailed:
        """Return `failure` with the name of the layer that loses most, where that can be found out."""
        try:
            gate = _gate(record, self._recipe.gates)
            known = self._searches.get((record.role, gate)) if gate is not None else None
            sensitivities = known.sensitivities if known is not None else self._ranked(record, path)
        except PocketlensError:
            return failure  # what cannot be diagnosed has failed all the same
        if not sensitivities:
            return failure
        worst = min(sensitivities, key=lambda one: one.alone_db)
        where = "" if record.target == "onnx" else ", in the ONNX form of this graph"
        found = (
            f"{failure.found}; the worst layer is {worst.layer.name} ({worst.layer.operator}), "
            f"{worst.alone_db:.1f} dB when it alone is quantized{where}"
        )
        if known is not None and known.failure is not None:
            found += f"; mixed precision: {known.failure.found}, where {known.failure.expected} is asked for"
        return ParityGateFailed(failure.what, expected=failure.expected, found=found, remedy=failure.remedy)

    def _ranked(self, record: GraphRecord, path: Path) -> tuple[Sensitivity, ...]:
        feeds = self._feeds[record.role][:_RANKING]
        if record.target == "onnx" and record.precision in _TRANSPLANTED:
            model = onnx.load(self._float(record.role))
            return measure_transplants(model, onnx.load(path), feeds, progress=self._progress)
        if _is_static(record):
            return measure_layers(self._quantizer(record.role), feeds, progress=self._progress)
        return ()

    def _search(self, role: Role, gate: Gate) -> _Search:
        if (role, gate) not in self._searches:
            quantizer = self._quantizer(role)
            search, held_out = self._feeds[role][:_SEARCHED], self._held_out(role)
            sensitivities = measure_layers(quantizer, search[:_RANKING], progress=self._progress)
            found, failure = None, None
            try:
                found = fewest_float_layers(
                    quantizer,
                    search=search,
                    held_out=held_out,
                    gate=gate,
                    sensitivities=sensitivities,
                    progress=self._progress,
                )
                failure = self._too_many(found, quantizer)
            except ParityGateFailed as error:
                failure = error
            self._report(role, quantizer, sensitivities, found, held_out, gate)
            self._searches[role, gate] = _Search(
                quantizer, sensitivities, None if failure is not None else found, failure
            )
        return self._searches[role, gate]

    def _too_many(self, found: MixedPrecision, quantizer: StaticQuantizer) -> ParityGateFailed | None:
        share, limit = len(found.float_layers) / len(quantizer.layers), self._recipe.max_float_share
        if share <= limit:
            return None
        return ParityGateFailed(
            f"int8 of {quantizer.name}, mixed precision",
            expected=f"at most {limit:.0%} of the layers in float (max_float_share)",
            found=f"{len(found.float_layers)} of {len(quantizer.layers)} needed",
            remedy="Ship this graph in fp32 or fp16, or raise max_float_share.",
        )

    def _report(
        self,
        role: Role,
        quantizer: StaticQuantizer,
        sensitivities: Sequence[Sensitivity],
        found: MixedPrecision | None,
        held_out: Sequence[Feed],
        gate: Gate,
    ) -> None:
        frontier = measure_frontier(
            f"int8 {role}",
            quantizer,
            sensitivities=sensitivities,
            chosen=None if found is None else found.float_layers,
            held_out=held_out,
            gate=gate,
            sets={name: chosen for name, rule in RULES.items() if (chosen := rule(quantizer.layers))},
            runs=self._recipe.latency_runs,
            progress=self._progress,
        )
        self._reports.mkdir(parents=True, exist_ok=True)
        (self._reports / f"{role}.md").write_text(frontier.markdown(), encoding="utf-8")
        frontier.write(self._reports / f"{role}.json")
        plot_frontier(frontier, self._reports / f"{role}.png")

    def _quantizer(self, role: Role) -> StaticQuantizer:
        source = self._folder / f"{role}-static.onnx"
        shutil.copyfile(self._float(role), source)  # its normalisation is folded in place
        return static_quantizer(role, source, self._feeds[role])

    def _float(self, role: Role) -> Path:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{role}.onnx"
        if not path.exists():
            twin = self._twins.get(role)
            if twin is not None and twin.exists():
                shutil.copyfile(twin, path)
            else:
                write_float(self._graphs[role], path)
        return path

    def _held_out(self, role: Role) -> list[Feed]:
        """Return inputs that parity is measured on, less those that calibration saw."""
        name, rows = {
            "image_encoder": ("pixels", self._reference.pixels),
            "text_encoder": ("ids", self._reference.ids),
            "caption_prefill": ("visual_tokens", self._reference.visual_tokens),
        }[role]
        seen = {feed[name].tobytes() for feed in self._feeds[role]}
        unseen = [row[None] for row in np.asarray(rows) if row.tobytes() not in seen]
        return [{name: row} for row in unseen[:: max(1, len(unseen) // _HELD_OUT)]]


def _is_static(record: GraphRecord) -> bool:
    return record.precision == "int8" and record.target in {"onnx", "executorch"}


def _gate(record: GraphRecord, gates: Gates) -> Gate | None:
    """Return the first cosine that `record` fails as a search understands it; `None` if there is nothing to search."""
    failed = failed_cosine(record, gates)
    if failed is None or not _is_static(record) or record.role not in _OUTPUTS:
        return None
    field, limit = failed
    return Gate(cosine=limit, statistic=_STATISTICS[field], outputs=_OUTPUTS[record.role]) if 0 < limit < 1 else None


def _note(found: MixedPrecision, quantizer: StaticQuantizer, *, executorch: bool) -> str:
    names = [layer.name for layer in _in_order(quantizer, found)]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    whose = "layers of its ONNX form" if executorch else "layers"
    return (
        f"Mixed precision: plain int8 fails its gate ({found.tried[0]:.4f} on the pictures of the search), so "
        f"{len(names)} of {len(quantizer.layers)} {whose} stay in float: {shown}."
    )


def _in_order(quantizer: StaticQuantizer, found: MixedPrecision) -> list[Layer]:
    kept = set(found.float_layers)
    return [layer for layer in quantizer.layers if layer in kept]
