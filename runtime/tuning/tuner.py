"""Measures a bundle on this device; `pocketlens tune`."""

import re
from importlib.util import find_spec
from time import monotonic
from typing import Final

import msgspec

from pocketlens.core.bundle import Bundle
from pocketlens.core.errors import BundleCrashed, EngineError
from pocketlens.runtime.engines.specs import EngineName, EngineSpec, parse_engines, specs_here
from pocketlens.runtime.sandbox import Limits, run_limited
from pocketlens.runtime.selection import needed_roles
from pocketlens.runtime.tuning.device import cores, this_device
from pocketlens.runtime.tuning.measure import Candidate, Order
from pocketlens.runtime.tuning.profile import Measurement, Profile, bundle_sha256, save_profile

__all__ = ["candidates_of", "tune"]

_PRELOAD: Final[dict[EngineName, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime",),
    "executorch": ("torch", "executorch.runtime", "executorch.kernels.quantized"),
    "coreml": ("coremltools",),
}
_GRACE_S: Final = 120.0  # beyond the limit: imports, loading, and the least that is timed of each candidate
_NUMBER: Final = re.compile(r"\[(\d+)\]$")
# A driver of a GPU or an NPU reserves address space as it likes, and builds its programs in files.
_UNLIMITED: Final = 2**46
_BUILD_BYTES: Final = 2**33


def tune(
    bundle: Bundle,
    *,
    engines: str | None = None,
    threads: int | None = None,
    limit_s: float = 60.0,
    save: bool = True,
) -> Profile:
    """Measure every way to run `bundle` on this device and keep the result for `load`.

    Each candidate is checked on the bundle's golden inputs and then timed in turns, batch 1, all of it in a
    child process with limits. One that kills the child is left out and the rest measured anew.

    Args:
        bundle: the verified bundle.
        engines: only these, by name, joined by commas; by default all that are on this machine.
        threads: only this number of CPU threads; by default 1, 2, 4, ... up to all.
        limit_s: seconds after which no further candidate is tried or turn begun. Whatever is in charge
            without a measurement is tried in any case.
        save: whether `load` finds the result.

    Raises:
        BundleError: the bundle changed since it was loaded, its golden files are malformed, or the child
            died before any candidate's turn.
        EngineError: no such engine, none of them has a graph here, or the result cannot be kept.
        ValueError: `limit_s` or `threads` is not positive.
    """
    if limit_s <= 0 or (threads is not None and threads < 1):
        raise ValueError(f"limit_s and threads: expected more than 0, found {limit_s} and {threads}")
    began = monotonic()
    specs = specs_here() if engines is None else parse_engines(engines)
    waiting = dict(enumerate(candidates_of(bundle, specs, threads)))
    if not waiting:
        raise EngineError(
            f"bundle {bundle.root}",
            expected=f"a graph for one of {', '.join(map(str, specs)) or 'the engines on this machine'}",
            found=f"graphs for {', '.join(sorted({graph.engine for graph in bundle.manifest.graphs}))}",
            remedy="Install an engine that the bundle has graphs for, or export the bundle for one that is here.",
        )
    done: dict[int, Measurement] = {}
    while waiting:
        left = max(1.0, limit_s - (monotonic() - began))
        try:
            done |= _measured(bundle, waiting, left)
            break
        except BundleCrashed as crash:
            number = _number(crash)
            if number not in waiting:
                raise
            done[number] = waiting.pop(number).outcome(status="crashed", note=crash.found[:200])
    profile = Profile(
        model_version=bundle.manifest.model_version,
        bundle_sha256=bundle_sha256(bundle),
        device=this_device(),
        seconds=monotonic() - began,
        measurements=tuple(done[number] for number in sorted(done)),
    )
    if save:
        save_profile(bundle, profile)
    return profile


def candidates_of(bundle: Bundle, specs: tuple[EngineSpec, ...], threads: int | None = None) -> list[Candidate]:
    """Return every way in which `specs` may run a graph that the bundle's tasks need, preferred or not."""
    counts = _thread_counts(cores()) if threads is None else (threads,)
    return [
        Candidate(role, str(spec), record.precision, record.path, count)
        for role in needed_roles(bundle)
        for record in bundle.manifest.graphs
        if record.role == role
        for spec in specs
        if spec.runs(record)
        for count in (counts if spec.on_cpu else counts[-1:])
    ]


def _thread_counts(most: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys([*(2**power for power in range(most.bit_length()) if 2**power <= most), most]))


def _measured(bundle: Bundle, waiting: dict[int, Candidate], limit_s: float) -> dict[int, Measurement]:
    names = {candidate.engine.partition(":")[0] for candidate in waiting.values()}
    preload = [module for name, modules in _PRELOAD.items() if name in names for module in modules]
    devices = any(":" in c.engine or c.engine == "coreml" for c in waiting.values())
    wall_s = limit_s + _GRACE_S
    limits = Limits(cpu_s=int(wall_s * cores()) + 1, wall_s=wall_s)
    if devices:
        limits = msgspec.structs.replace(limits, memory_bytes=_UNLIMITED, file_bytes=_BUILD_BYTES)
    answer = run_limited(
        "pocketlens.runtime.tuning.measure:measure",
        msgspec.json.encode(Order(str(bundle.root), waiting, limit_s)),
        what=f"bundle {bundle.root}",
        limits=limits,
        preload=[module for module in preload if find_spec(module.partition(".")[0]) is not None],
    )
    return msgspec.json.decode(answer, type=dict[int, Measurement])


def _number(crash: BundleCrashed) -> int | None:
    """Return the number of the candidate whose turn it was; the child's last note ends with it."""
    found = _NUMBER.search(crash.what)
    return int(found[1]) if found else None
