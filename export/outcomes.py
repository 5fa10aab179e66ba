"""What became of each graph of an export, told while it happens: the data behind the table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from pocketlens.core.bundle import GraphRecord, Latency, Parity, Quality, Role
from pocketlens.core.errors import ExportError, PocketlensError
from pocketlens.export.delegation import Delegation

__all__ = ["GraphOutcome", "OutcomeLog", "Status", "Watch", "incomplete_export"]

Status = Literal["waiting", "lowered", "passed", "not_run", "failed"]
"""`not_run`: written, but its engine is not on this machine, so nothing was measured."""

_SHOWN: Final = 5


class GraphOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one graph so far. Figures that are not known yet, or never will be, are `None`.

    Attributes:
        variant: `onnx-int8`.
        role: which of the student's graphs.
        status: see `Status`.
        bytes: size of the file, or of all files of a folder.
        delegation: what an accelerator took over; ExecuTorch only.
        parity: against the eager student, on real pictures and texts.
        latency: of one call at batch 1.
        speedup_vs_fp32: how many times as fast as the fp32 graph of the same target.
        quality: figures of the whole variant, by metric.
        reason: why it failed, or why nothing was measured; empty otherwise.
        shipped: false for an fp32 twin that is only measured.
    """

    variant: str
    role: Role
    status: Status = "waiting"
    bytes: int | None = None
    delegation: Delegation | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    speedup_vs_fp32: float | None = None
    quality: dict[str, float] = {}
    reason: str = ""
    shipped: bool = True


Watch = Callable[[GraphOutcome], None]
"""Called with the new state of a graph, each time that one changes."""

_Key = tuple[str, Role]


class OutcomeLog:
    """Holds the latest outcome of every graph and tells a watcher of each change.

    Args:
        variants: in the order of the table.
        roles: likewise.
        shipped: those variants that the bundle is to hold.
        watch: told of each graph at once, and of every change.
    """

    def __init__(self, variants: Sequence[str], roles: Sequence[Role], shipped: Iterable[str], watch: Watch) -> None:
        self._watch = watch
        self._errors: dict[_Key, PocketlensError] = {}
        kept = set(shipped)
        self._outcomes: dict[_Key, GraphOutcome] = {}
        for variant in variants:
            for role in roles:
                self._set(GraphOutcome(variant=variant, role=role, shipped=variant in kept))

    @property
    def outcomes(self) -> tuple[GraphOutcome, ...]:
        """All of them, in the order of the table."""
        return tuple(self._outcomes.values())

    @property
    def errors(self) -> Mapping[_Key, PocketlensError]:
        """Why graphs failed."""
        return dict(self._errors)

    def failed(self, variant: str, role: Role) -> bool:
        """Return whether a graph failed."""
        return (variant, role) in self._errors

    def lowered(self, variant: str, role: Role, delegation: Delegation | None) -> None:
        """Note that a graph was written."""
        self._change(variant, role, status="lowered", delegation=delegation)

    def fail(self, variant: str, role: Role, error: PocketlensError) -> None:
        """Note that a graph cannot ship; the first reason stays."""
        if not self.failed(variant, role):
            self._errors[variant, role] = error
            reason = f"{error.found}; expected {error.expected}"
            self._change(variant, role, status="failed", reason=reason)

    def measured(self, record: GraphRecord) -> None:
        """Take over the figures of a record; its status stays."""
        self._change(
            f"{record.target}-{record.precision}",
            record.role,
            bytes=record.bytes,
            parity=record.parity,
            latency=record.latency,
            speedup_vs_fp32=record.speedup_vs_fp32,
        )

    def unmeasured(self, variant: str, role: Role, reason: str) -> None:
        """Note why the parity of a graph stays unknown; its status stays."""
        self._change(variant, role, reason=reason)

    def passed(self, record: GraphRecord) -> None:
        """Note that a graph passed its gates, or had none to pass because nothing runs it here."""
        variant = f"{record.target}-{record.precision}"
        if record.parity is None:
            known = self._outcomes[variant, record.role].reason
            reason = known or f"nothing on this machine runs {record.engine}"
            self._change(variant, record.role, status="not_run", reason=reason)
        else:
            self._change(variant, record.role, status="passed")

    def evaluated(self, quality: Iterable[Quality]) -> None:
        """Take over task quality, which belongs to all graphs of a variant."""
        found: dict[str, dict[str, float]] = {}
        for entry in quality:
            found.setdefault(entry.subject, {})[entry.metric] = entry.value
        for variant, role in list(self._outcomes):
            if variant in found:
                self._change(variant, role, quality=found[variant])

    def _change(self, variant: str, role: Role, **changes: object) -> None:
        self._set(msgspec.structs.replace(self._outcomes[variant, role], **changes))

    def _set(self, outcome: GraphOutcome) -> None:
        self._outcomes[outcome.variant, outcome.role] = outcome
        self._watch(outcome)


def incomplete_export(errors: Mapping[_Key, PocketlensError], *, total: int) -> ExportError:
    """Return the error of an export that went on without the graphs in `errors`."""
    shown = [f"{variant} {role} ({type(error).__name__})" for (variant, role), error in errors.items()]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ExportError(
        "export",
        expected=f"all {total} graphs to be written and to pass their gates",
        found=f"{len(shown)} that did not: {', '.join(shown[:_SHOWN])}{more}",
        remedy="The table says why each of them failed. The bundle holds the others.",
    )
