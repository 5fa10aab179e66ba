"""Which graph of a bundle runs which role.

Today the choice rests on what the exporting machine measured. A measurement on this device only
has to hand another `Variant` to `choose_graphs`.
"""

from pocketlens.core.bundle import ROLES, Bundle, GraphRecord, Role
from pocketlens.core.errors import BundleIncomplete

__all__ = ["choose_graphs", "needed_roles"]


def needed_roles(bundle: Bundle) -> tuple[Role, ...]:
    """Return the roles that the tasks of this bundle need, in the order of `ROLES`."""
    tasks = bundle.manifest.tasks
    needed = {"image_encoder"}
    if "embed" in tasks:
        needed.add("text_encoder")
    if "caption" in tasks:
        needed.update(("caption_prefill", "caption_decode"))
    return tuple(role for role in ROLES if role in needed)


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
    chosen: dict[Role, GraphRecord] = {}
    wanted = precision
    for role in needed_roles(bundle):
        candidates = [g for g in bundle.manifest.graphs if g.role == role and g.engine == engine]
        if precision is None:
            fitting = [g for g in candidates if g.preferred]
            fitting.sort(key=lambda g: (g.precision != wanted, _p50_ms(g)))
        else:
            fitting = [g for g in candidates if g.precision == precision]
        if not fitting:
            raise _no_graph(bundle, role, engine, precision)
        chosen[role] = fitting[0]
        wanted = wanted or fitting[0].precision  # the image encoder comes first in ROLES
    return chosen


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
