"""From measurements to an order: what runs each role, and what follows if it fails.

Speed decides, but noise must not: of what is within 5 % of the fastest, the graph of the higher precision
with the fewer threads is taken. Two engines in one process cost memory and time to load, so they are mixed
only where that saves more than a tenth of the time of a caption, and ONNX Runtime is left only for as much.
"""

from collections.abc import Collection
from typing import Final

from pocketlens.core.bundle import Bundle, Role
from pocketlens.runtime.engines.fallback import Choice
from pocketlens.runtime.engines.specs import EngineName, EngineSpec, parse_engine
from pocketlens.runtime.tuning.profile import Profile

__all__ = ["ranked"]

_TIE: Final = 1.05
_WORTH: Final = 0.9
_PRECISIONS: Final = ("fp32", "fp16", "int8")

_Times = list[tuple[Choice, float]]
_Table = dict[Role, _Times]


def ranked(
    profile: Profile,
    bundle: Bundle,
    *,
    engines: Collection[EngineSpec] | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> dict[Role, tuple[Choice, ...]]:
    """Return for each role what was measured of it, best first, one entry for each graph and engine.

    Args:
        profile: the measurements.
        bundle: the bundle that they are of; what it does not hold is left out.
        engines: only these; by default all.
        precision: only this one; by default all.
        threads: this many, in place of what was measured best.
    """
    table = _one_pool(_table(profile, bundle, engines, precision, threads))
    families = _families(table, bundle)
    return {role: _ordered(times, families) for role, times in table.items()}


def _table(
    profile: Profile, bundle: Bundle, engines: Collection[EngineSpec] | None, precision: str | None, threads: int | None
) -> _Table:
    records = {(graph.role, graph.path): graph for graph in bundle.manifest.graphs}
    table: _Table = {}
    exact = {m.path for m in profile.measurements if m.threads == threads and m.status == "measured"}
    for m in profile.measurements:
        spec, record = parse_engine(m.engine), records.get((m.role, m.path))
        if m.status != "measured" or m.p50_ms is None or record is None or not spec.runs(record):
            continue
        if (engines is not None and spec not in engines) or precision not in (None, record.precision):
            continue
        if threads is not None and m.path in exact and m.threads != threads:
            continue
        table.setdefault(m.role, []).append((Choice(spec, record, threads or m.threads), m.p50_ms))
    return table


def _one_pool(table: _Table) -> _Table:
    """Keep one number of threads for ExecuTorch, whose pool is one for the process: its image encoder's best."""
    own = [pair for pair in table.get("image_encoder", ()) if pair[0].spec.engine == "executorch"]
    if not own:
        return table
    best = min(own, key=_ms)[0].threads
    return {
        role: [(c, ms) for c, ms in times if c.spec.engine != "executorch" or c.threads == best]
        for role, times in table.items()
    }


def _families(table: _Table, bundle: Bundle) -> set[EngineName]:
    """Return the libraries that are used: one, or all where mixing them is worth it."""
    names = {choice.spec.engine for times in table.values() for choice, _ in times}
    tokens = bundle.manifest.caption.max_tokens / 2 if bundle.manifest.caption is not None else 1.0

    def cost(allowed: set[EngineName]) -> float:
        best = {
            role: min((ms for choice, ms in times if choice.spec.engine in allowed), default=float("inf"))
            for role, times in table.items()
        }
        return sum(ms * (tokens if role == "caption_decode" else 1.0) for role, ms in best.items())

    if not names:
        return set()
    alone = min(names, key=lambda name: cost({name}) * (_WORTH if name == "onnxruntime" else 1.0))
    return names if cost(names) < _WORTH * cost({alone}) else {alone}


def _ordered(times: _Times, families: Collection[EngineName]) -> tuple[Choice, ...]:
    order: list[Choice] = []
    for wanted in (True, False):
        part = sorted((pair for pair in times if (pair[0].spec.engine in families) is wanted), key=_ms)
        near = [choice for choice, ms in part if ms <= _TIE * part[0][1]]
        order += sorted(near, key=_simplicity)
        order += [choice for choice, _ in part[len(near) :]]
    once: dict[tuple[EngineSpec, str], Choice] = {}
    for choice in order:
        once.setdefault((choice.spec, choice.record.path), choice)
    return tuple(once.values())


def _ms(pair: tuple[Choice, float]) -> float:
    return pair[1]


def _simplicity(choice: Choice) -> tuple[int, int, bool]:
    name = choice.record.precision
    rank = _PRECISIONS.index(name) if name in _PRECISIONS else len(_PRECISIONS)
    return rank, choice.threads or 0, not choice.spec.on_cpu
