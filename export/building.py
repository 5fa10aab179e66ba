"""All graphs of an export: lowered, recorded, measured and gated; to the first failure, or past all of them."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from pocketlens.core.bundle import ROLES, GraphRecord, Manifest, Quality, Role
from pocketlens.core.errors import EngineError, ParityGateFailed, PocketlensError
from pocketlens.export.delegation import Delegation
from pocketlens.export.gates import mark_slower, parity_failure, quality_failure, speed_failure
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import Lowered, Progress, graph_path, lower
from pocketlens.export.measure import graph_records, measured
from pocketlens.export.mixing import Mixing, Rewritten
from pocketlens.export.outcomes import OutcomeLog, Watch, incomplete_export
from pocketlens.export.recipe import ExportRecipe, split_variant
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.stand_in import eager_answers
from pocketlens.export.targets import open_target
from pocketlens.runtime.engines import ENGINES

__all__ = ["Build", "twins"]


def twins(variants: Sequence[str]) -> list[str]:
    """Return the fp32 variants that are not among `variants` but that its others are compared with.

    Only where the target's files run here: what is not timed needs no twin.
    """
    needed = dict.fromkeys(
        f"{target}-fp32"
        for target, precision in map(split_variant, variants)
        if precision != "fp32" and open_target(target).engine in ENGINES
    )
    return [variant for variant in needed if variant not in variants]


class Build:
    """One run over all graphs of a recipe. `graphs`, then `evaluated`; `finish` says what is missing.

    Args:
        recipe: what is exported and what it must reach.
        staging: a folder; shipped variants go under `bundle` in it, twins under `twins`.
        roles: the graphs that the model has.
        reports: a folder for what mixed precision cost, made when there is something to tell; by default in `staging`.
        keep_going: a graph that fails stops no other.
        watch: told what becomes of each graph.
    """

    def __init__(
        self,
        recipe: ExportRecipe,
        staging: Path,
        *,
        roles: Sequence[Role] = ROLES,
        keep_going: bool,
        watch: Watch,
        reports: Path | None = None,
    ) -> None:
        self._recipe = recipe
        self._keep_going = keep_going
        self._roles = tuple(roles)
        self._staging = staging
        self._reports = reports or staging / "reports"
        self._roots = dict.fromkeys(recipe.variants, staging / "bundle") | dict.fromkeys(
            twins(recipe.variants), staging / "twins"
        )
        self.log = OutcomeLog(list(self._roots), self._roles, recipe.variants, watch)

    def graphs(
        self,
        source: str,
        graphs: Mapping[Role, Graph],
        *,
        manifest: Manifest,
        feeds: Mapping[Role, list[Feed]],
        reference: Reference,
        progress: Progress,
    ) -> list[GraphRecord]:
        """Return the records of the graphs that ship; the files of the others are gone.

        Args:
            source: see `pocketlens.export.sources.opening`; worker processes open it again.
            graphs: its graphs.
            manifest: gives the layout of captions and tokens.
            feeds: calibration inputs of batch 1 by role, at least one each.
            reference: the eager student's answers.
            progress: called after each lowering, and with what is measured.

        Raises:
            ExportError: without `keep_going`, the first graph that cannot be produced or fails its gate;
                with it, if there is none left.
            EngineError: without `keep_going`, a graph that does not run.
            StorageFull: no space left.
        """
        delegations = self._lower(source, feeds, progress)
        mixing = Mixing(
            self._recipe,
            graphs,
            feeds=feeds,
            reference=reference,
            folder=self._staging / "float",
            twins={role: self._path("onnx-fp32", role) for role in self._roles if "onnx-fp32" in self._roots},
            reports=self._reports,
            progress=progress,
        )

        def figures(variants: Iterable[str]) -> dict[str, list[GraphRecord]]:
            records = {variant: self._records(variant, graphs, delegations) for variant in variants}
            for record in (record for of_variant in records.values() for record in of_variant):
                self.log.measured(record)
            found = measured(
                records,
                self._roots,
                manifest=manifest,
                reference=reference,
                rows={role: found[0] for role, found in feeds.items()},
                runs=self._recipe.latency_runs,
                progress=lambda what: progress(what, 0, 0),
                stand_in=eager_answers(graphs),
                on_error=self._not_runnable if self._keep_going else None,
                coreml_samples=self._recipe.coreml_samples,
                on_unmeasured=self.log.unmeasured,
            )
            for record in (record for of_variant in found.values() for record in of_variant):
                self.log.measured(record)
            return found

        filled = figures(self._roots)
        mixed = self._mixed(filled, mixing)
        delegations |= {key: found.delegation for key, found in mixed.items()}
        if mixed:
            # Timed in turns with their twins once more: a graph with other layers is another graph.
            twin = {f"{split_variant(variant)[0]}-fp32" for variant, _ in mixed}
            again = figures([v for v in self._roots if v in twin or any(v == variant for variant, _ in mixed)])
            filled |= {
                variant: [_noted(record, mixed.get((variant, record.role))) for record in found]
                for variant, found in again.items()
            }
        return self._gated(filled, mixing)

    def evaluated(self, quality: Sequence[Quality], records: Sequence[GraphRecord], root: Path) -> list[GraphRecord]:
        """Return `records` without the variants and graphs that lose too much of a task metric; their files are gone.

        Args:
            quality: what was measured.
            records: as `graphs` returned them.
            root: the folder that their paths are relative to by now.

        Raises:
            ParityGateFailed: without `keep_going`, the first of them.
            ExportError: with `keep_going`, if nothing is left.
        """
        self.log.evaluated(quality)
        for variant in self._recipe.variants:
            whole = quality_failure(quality, self._recipe.gates, variant=variant)
            for role in self._roles:
                failure = whole or quality_failure(quality, self._recipe.gates, variant=variant, role=role)
                if failure is not None:
                    self._refuse(variant, role, failure, root)
        return self._without_failed(records)

    def finish(self) -> None:
        """Say what did not make it.

        Raises:
            ExportError: graphs failed; names them.
        """
        shipped = {(o.variant, o.role) for o in self.log.outcomes if o.shipped}
        errors = {key: error for key, error in self.log.errors.items() if key in shipped}
        if errors:
            raise incomplete_export(errors, total=len(shipped))

    def _lower(
        self, source: str, feeds: Mapping[Role, list[Feed]], progress: Progress
    ) -> dict[tuple[str, Role], Delegation | None]:
        found: dict[tuple[str, Role], Delegation | None] = {}

        def watch(result: Lowered) -> None:
            if result.error is not None:
                self.log.fail(result.variant, result.role, result.error)
            else:
                found[result.variant, result.role] = result.delegation
                self.log.lowered(result.variant, result.role, result.delegation)

        lower(
            source,
            self._roots,
            feeds,
            workers=self._recipe.workers,
            progress=progress,
            keep_going=self._keep_going,
            watch=watch,
        )
        return found

    def _records(
        self, variant: str, graphs: Mapping[Role, Graph], delegations: Mapping[tuple[str, Role], Delegation | None]
    ) -> list[GraphRecord]:
        return graph_records(
            variant,
            self._roots[variant],
            graphs,
            roles=[role for role in self._roles if not self.log.failed(variant, role)],
            delegations={role: delegations.get((variant, role)) for role in self._roles},
        )

    def _path(self, variant: str, role: Role) -> Path:
        return self._roots[variant] / graph_path(variant, role)

    def _mixed(self, filled: Mapping[str, Sequence[GraphRecord]], mixing: Mixing) -> dict[tuple[str, Role], Rewritten]:
        """Write graphs that fail their gate again in mixed precision; return what came of those that were."""
        mixed = {}
        for variant, records in filled.items():
            for record in records:
                if parity_failure(record, self._recipe.gates) is None:
                    continue
                found = mixing.rewritten(record, self._path(variant, record.role))
                if found is not None:
                    mixed[variant, record.role] = found
        return mixed

    def _gated(self, filled: Mapping[str, Sequence[GraphRecord]], mixing: Mixing) -> list[GraphRecord]:
        gates = self._recipe.gates
        everything = [record for found in filled.values() for record in found]
        for check in (parity_failure, speed_failure):
            for record in everything:
                failure, variant = check(record, gates), f"{record.target}-{record.precision}"
                if isinstance(failure, ParityGateFailed):
                    failure = mixing.explained(record, self._path(variant, record.role), failure)
                if failure is not None:
                    self._refuse(variant, record.role, failure, self._roots[variant])
        shipped = self._without_failed([record for v in self._recipe.variants for record in filled[v]])
        for record in everything:
            if not self.log.failed(f"{record.target}-{record.precision}", record.role):
                self.log.passed(record)
        return mark_slower(shipped, gates)

    def _without_failed(self, records: Sequence[GraphRecord]) -> list[GraphRecord]:
        kept = [r for r in records if not self.log.failed(f"{r.target}-{r.precision}", r.role)]
        if not kept:
            self.finish()
        return kept

    def _refuse(self, variant: str, role: Role, failure: PocketlensError, root: Path) -> None:
        if not self._keep_going:
            raise failure
        self.log.fail(variant, role, failure)
        _discard(root / graph_path(variant, role), role)

    def _not_runnable(self, variant: str, role: Role, error: EngineError) -> None:
        self._refuse(variant, role, error, self._roots[variant])


def _noted(record: GraphRecord, found: Rewritten | None) -> GraphRecord:
    return record if found is None else msgspec.structs.replace(record, notes=(*record.notes, found.note))


def _discard(path: Path, role: Role) -> None:
    """Remove a graph and what lies beside it for it, such as a build script: a bundle ships no loose files."""
    for beside in path.parent.iterdir():
        if role in beside.name:
            shutil.rmtree(beside) if beside.is_dir() else beside.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
