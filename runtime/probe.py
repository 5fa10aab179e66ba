"""Tries every graph of a bundle in a child process before this process loads one.

Hashes say that a bundle is whole, a signature says who made it. Neither says that a graph is harmless to
the library that parses it. Fuzzed ExecuTorch programs kill the process that loads them, a valid ONNX
graph may hold an endless loop, and a shape may ask for more memory than there is.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Manifest, load_bundle
from pocketlens.runtime.engines import ENGINES, EngineName, open_engine
from pocketlens.runtime.sandbox import Limits, run_limited

__all__ = ["ProbeReport", "probe_graphs"]

_PRELOAD: Final[Mapping[EngineName, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime",),
    "executorch": ("torch", "executorch.runtime", "executorch.kernels.quantized"),
}


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of the graphs that loaded and ran once, and of those whose engine is not on this machine."""

    passed: tuple[str, ...]
    skipped: tuple[str, ...]


class _Order(msgspec.Struct, frozen=True):
    root: str
    engine: EngineName


def probe_graphs(bundle: Bundle, *, limits: Limits = Limits()) -> ProbeReport:  # noqa: B008 - frozen
    """Load each graph of `bundle` and run it once on the smallest input, in one limited child process for each engine.

    Raises:
        BundleCrashed: a graph killed the child, or went over a limit; the message names it.
        EngineError: a graph does not load, or fails on that input.
        BundleError: the bundle changed since it was loaded.
    """
    passed: list[str] = []
    engines = [name for name in ENGINES if find_spec(name) is not None]
    for engine in engines:
        if any(record.engine == engine for record in bundle.manifest.graphs):
            order = msgspec.json.encode(_Order(str(bundle.root), engine))
            run_limited(
                "pocketlens.runtime.probe:try_graphs",
                order,
                what=f"bundle {bundle.root}",
                limits=limits,
                preload=_PRELOAD[engine],
            )
            passed += [record.path for record in bundle.manifest.graphs if record.engine == engine]
    skipped = [record.path for record in bundle.manifest.graphs if record.engine not in engines]
    return ProbeReport(passed=tuple(passed), skipped=tuple(skipped))


def try_graphs(argument: bytes, note: Callable[[str], None]) -> bytes:
    """Run the graphs of one engine, one after the other; called in the child."""
    order = msgspec.json.decode(argument, type=_Order)
    bundle = load_bundle(Path(order.root))  # hashed again: it is read by path from here on
    for record in bundle.manifest.graphs:
        if record.engine == order.engine:
            note(record.path)
            engine = open_engine(order.engine, bundle, {record.role: record}, threads=1)
            engine.run(record.role, _inputs(record, bundle.manifest))
    return b""


def _inputs(record: GraphRecord, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the smallest legal input: zeros, but for tokens and places that no graph knows at zero."""
    inputs = {
        spec.name: np.zeros([1 if side == -1 else side for side in spec.shape], dtype=spec.dtype)
        for spec in record.inputs
    }
    if record.role == "text_encoder" and "ids" in inputs:
        inputs["ids"][..., :2] = [manifest.tokenizer.bos_id, manifest.tokenizer.eos_id]
    if record.role == "caption_decode" and manifest.caption is not None:
        # Text begins behind the visual positions; an index before them is out of the graph's table.
        first = {"token": manifest.tokenizer.bos_id, "position": manifest.caption.prefix_length}
        for name in first.keys() & inputs.keys():
            inputs[name][...] = first[name]
    return inputs
