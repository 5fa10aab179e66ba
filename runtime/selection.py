"""Which graph of a bundle runs which role, on which engine, and what takes over where that fails.

Two sources: what `pocketlens tune` measured on this device, and, where it was never run, what the
exporting machine measured. The second is a guess about this device and is called that (`exported`).
"""

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Final, Literal

import msgspec

from pocketlens.core.bundle import ROLES, Bundle, GraphRecord, Role
from pocketlens.core.errors import BundleIncomplete
from pocketlens.runtime.engines.fallback import Choice
from pocketlens.runtime.engines.specs import EngineSpec, parse_engine, parse_engines
from pocketlens.runtime.tuning.profile import load_profile
from pocketlens.runtime.tuning.ranking import ranked

__all__ = ["ChosenBy", "Plan", "choose_graphs", "needed_roles", "plan_engines"]

ChosenBy = Literal["tuned", "exported", "asked"]
"""`tuned`: measured on this device. `exported`: by the figures of the exporting machine. `asked`: the
caller named engine and precision, so nothing was left to choose but what the exporting machine says."""

_DEFAULT: Final = EngineSpec("onnxruntime")


class Plan(msgspec.Struct, frozen=True):
    """How a bundle is run here.

    Attributes:
        chains: for each role that the bundle's tasks need, the ways to run it, the one to take first.
        chosen_by: what decided the order.
    """

    chains: dict[Role, tuple[Choice, ...]]
    chosen_by: ChosenBy

    def first(self, role: Role) -> Choice:
        """Return how `role` is run."""
        return self.chains[role][0]


def needed_roles(bundle: Bundle) -> tuple[Role, ...]:
    """Return the roles that the tasks of this bundle need, in the order of `ROLES`."""
    tasks = bundle.manifest.tasks
    needed = {"image_encoder"}
    if "embed" in tasks:
        needed.add("text_encoder")
    if "caption" in tasks:
        needed.update(("caption_prefill", "caption_decode"))
    return tuple(role for role in ROLES if role in needed)


def plan_engines(
    bundle: Bundle,
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tuned: bool = True,
) -> Plan:
    """Return how `bundle` is run on this device.

    Where `pocketlens tune` measured this bundle here, its figures decide among what is asked for.
    Where it did not, `choose_graphs` decides for the first engine. Everything else that could run a role
    follows in its chain, slower and not preferred graphs last; what `tune` found to be wrong or to crash
    is not in it.

    Args:
        bundle: the verified bundle.
        engine: engines by name, joined by commas, the first one preferred; only these are used. By
            default every engine here that the bundle has graphs for, ONNX Runtime's CPU first.
        precision: exactly this one, preferred or not.
        threads: CPU threads of one call, whatever was measured.
        tuned: whether a measurement on this device is used.

    Raises:
        BundleIncomplete: a role has no graph that fits; the message lists what there is.
        EngineError: no such engine.
    """
    asked = parse_engines(engine) if engine is not None else None
    specs = asked or _usual()
    profile = load_profile(bundle) if tuned else None
    chains: dict[Role, tuple[Choice, ...]] = {}
    measured = False
    exported = _by_export(bundle, specs, precision, threads, asked=asked is not None)
    order = {} if profile is None else ranked(profile, bundle, engines=asked, precision=precision, threads=threads)
    rejected = set() if profile is None else profile.rejected
    for role in needed_roles(bundle):
        best = order.get(role, ())
        measured = measured or bool(best)
        seen = {(choice.spec, choice.record.path) for choice in best}
        rest = tuple(c for c in exported[role] if (c.spec, c.record.path) not in seen | rejected)
        # A bundle of which nothing is right here is still loaded: the engine then says what is wrong.
        chains[role] = (*best, *rest) or exported[role]
    named = engine is not None and precision is not None
    return Plan(chains, "tuned" if measured else "asked" if named else "exported")


def choose_graphs(bundle: Bundle, *, engine: str, precision: str | None = None) -> dict[Role, GraphRecord]:
    """Return one graph per role that the bundle's tasks need.

    Without a `precision`, only graphs that the manifest prefers are looked at. The precision whose
    image encoder was measured fastest (p50) at export is taken for every role that has a preferred
    graph of it; a role that has none takes its own fastest preferred graph. Graphs of different
    precisions fit together: they are the same student.

    With a `precision`, exactly that one is taken for every role, preferred or not.

    Raises:
        BundleIncomplete: a role has no graph that fits; the message lists what there is.
    """
    chains = _by_export(bundle, (parse_engine(engine),), precision, None, asked=True)
    return {role: chain[0].record for role, chain in chains.items()}


def _usual() -> tuple[EngineSpec, ...]:
    """Return the engines that are tried without being asked for: the CPU's, then CoreML where there is one."""
    more = [EngineSpec("executorch")] if find_spec("executorch") is not None else []
    if sys.platform == "darwin" and find_spec("coremltools") is not None:
        more.append(EngineSpec("coreml"))
    return (_DEFAULT, *more)


def _by_export(
    bundle: Bundle, specs: Sequence[EngineSpec], precision: str | None, threads: int | None, *, asked: bool
) -> dict[Role, tuple[Choice, ...]]:
    """Return for each role every graph that may run it, in the order that the exporting machine's figures give."""
    chains: dict[Role, tuple[Choice, ...]] = {}
    wanted: dict[EngineSpec, str | None] = dict.fromkeys(specs, precision)
    for role in needed_roles(bundle):
        chain = []
        for spec in specs:
            fitting = list(_fitting(bundle, role, spec, precision, wanted[spec]))
            if fitting and wanted[spec] is None:
                wanted[spec] = fitting[0].precision  # the image encoder comes first in ROLES
            chain += [Choice(spec, record, threads) for record in fitting]
        usable = [choice for choice in chain if precision is not None or choice.record.preferred]
        if not usable:
            raise _no_graph(bundle, role, ", ".join(map(str, specs)) if asked else _DEFAULT.engine, precision)
        chains[role] = (*usable, *(choice for choice in chain if choice not in usable))
    return chains


def _fitting(
    bundle: Bundle, role: Role, spec: EngineSpec, precision: str | None, wanted: str | None
) -> Iterator[GraphRecord]:
    graphs = [g for g in bundle.manifest.graphs if g.role == role and spec.runs(g)]
    graphs = [g for g in graphs if precision in (None, g.precision)]
    own = "tensorrt" if spec.provider == "tensorrt" else spec.engine
    yield from sorted(graphs, key=lambda g: (not g.preferred, g.engine != own, g.precision != wanted, _p50_ms(g)))


def _p50_ms(record: GraphRecord) -> float:
    """Return the measured latency; a graph that was never measured is the slowest of all."""
    return float("inf") if record.latency is None else record.latency.p50_ms


def _no_graph(bundle: Bundle, role: Role, engine: str, precision: str | None) -> BundleIncomplete:
    found = [
        f"{g.precision} for {g.engine}{'' if g.preferred else ' (not preferred)'}"
        for g in bundle.manifest.graphs
        if g.role == role
    ]
    kind = "preferred" if precision is None else precision
    return BundleIncomplete(
        f"bundle {bundle.root}",
        expected=f"a {kind} {role} graph for {engine}",
        found=", ".join(found) or f"no {role} graph",
        remedy="Ask for one of those, or export the missing one with `pocketlens export`.",
    )
