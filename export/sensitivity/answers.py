"""Runs graphs on inputs and compares what comes out."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["Answers", "Runner", "decibel", "run_graph", "snr_db"]

Answers = dict[str, NDArray[Any]]
"""Outputs by name, all inputs' rows along axis 0."""

_FATAL_ONLY: Final = 4


class Runner:
    """A graph in ONNX Runtime on one thread.

    Args:
        model: the graph.
        also: names of inner tensors that come out too; the graph's outputs always do.
        rounded_float: compute a quantized graph as it is written: dequantize, compute in float, round.
            Otherwise integer kernels take over, as they do in an app.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """

    def __init__(self, model: onnx.ModelProto, *, also: Sequence[str] = (), rounded_float: bool = False) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented

        if also:
            # Inner types need not be known: ONNX Runtime infers those of outputs as well.
            extended = onnx.ModelProto()
            extended.CopyFrom(model)
            known = {value.name for value in extended.graph.output}
            extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also if name not in known)
            model = extended
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = 1
        if rounded_float:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (Fail, InvalidGraph, NotImplemented, RuntimeError) as error:
            raise EngineError(
                f"ONNX graph {model.graph.name}",
                expected="a graph that ONNX Runtime can load",
                found=str(error)[:300],
                remedy="Check the installed onnxruntime against constraints.txt.",
            ) from error
        self._names = [value.name for value in self._session.get_outputs()]

    def run(self, feed: "Feed") -> Answers:
        """Return the outputs for one feed."""
        return dict(zip(self._names, self._session.run(None, feed), strict=True))


def run_graph(model: onnx.ModelProto, feeds: "Sequence[Feed]", *, rounded_float: bool = False) -> Answers:
    """Return the outputs of `model` for all `feeds`; see `Runner`."""
    runner = Runner(model, rounded_float=rounded_float)
    parts = [runner.run(feed) for feed in feeds]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def snr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the signal-to-noise ratio of `found` in dB; see `decibel`."""
    signal = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        noise = np.square(signal - found.astype(np.float64)).sum()
    return decibel(float(np.square(signal).sum()), float(noise))


def decibel(signal: float, noise: float) -> float:
    """Return `10 log10(signal / noise)` of two powers.

    Infinite without noise; minus infinite without a signal, or where the noise is not finite.
    """
    if not math.isfinite(noise):
        return -math.inf
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
