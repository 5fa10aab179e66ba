"""What each layer costs: signal-to-noise ratios against the float graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pocketlens.export.sensitivity.answers import Runner, decibel, run_graph, snr_db
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.sensitivity.quantizer import StaticQuantizer

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["Progress", "Sensitivity", "measure_layers"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer does.

    Attributes:
        layer: which.
        alone_db: SNR of the graph's worst output when only this layer is int8. The lower, the more
            this layer costs; the search keeps layers in float in this order.
        here_db: SNR of the layer's own output in the fully quantized graph: its own error and all
            that came before. `None` where the quantized graph no longer holds that tensor.
    """

    layer: Layer
    alone_db: float
    here_db: float | None


def measure_layers(
    quantizer: StaticQuantizer, feeds: "Sequence[Feed]", *, progress: Progress = lambda what, done, total: None
) -> tuple[Sensitivity, ...]:
    """Return the sensitivity of each of the quantizer's layers, in the order of the graph.

    Args:
        quantizer: the calibrated graph.
        feeds: real inputs; a few pictures are enough to rank by.
        progress: called after each layer.
    """
    expected = run_graph(quantizer.model, feeds)
    here = _accumulated(quantizer, feeds)
    found = []
    for done, layer in enumerate(quantizer.layers, start=1):
        answers = run_graph(quantizer.quantized_only([layer]), feeds)
        alone = min(snr_db(expected[name], answers[name]) for name in expected)
        found.append(Sensitivity(layer, alone, here.get(layer.output)))
        progress("sensitivity", done, len(quantizer.layers))
    return tuple(found)


def _accumulated(quantizer: StaticQuantizer, feeds: "Sequence[Feed]") -> dict[str, float]:
    """Return the SNR of every layer's output in the fully quantized graph, by tensor name."""
    model = quantizer.quantized()
    names = _as_readers_see(model, [layer.output for layer in quantizer.layers])
    plain, coded = Runner(quantizer.model, also=list(names)), Runner(model, also=list(names.values()))
    sums: dict[str, NDArray[np.float64]] = {name: np.zeros(2) for name in names}
    for feed in feeds:  # one at a time: all activations of all pictures would not fit into memory
        signal, noisy = plain.run(feed), coded.run(feed)
        for name, seen in names.items():
            sums[name] += _powers(signal[name], noisy[seen])
    return {name: decibel(float(powers[0]), float(powers[1])) for name, powers in sums.items()}


def _as_readers_see(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Return, by float tensor, the tensor of the quantized graph that later layers read.

    That is the dequantized one where there is one. The tensor before it may lack its ReLU: the
    quantizer leaves that to the zero point.
    """
    made = {name for node in model.graph.node for name in node.output}
    coded = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    plain = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {name: plain.get(coded.get(name, ""), name) for name in names if name in made}


def _powers(signal: NDArray[Any], noisy: NDArray[Any]) -> NDArray[np.float64]:
    clean = signal.astype(np.float64)
    return np.array([np.square(clean).sum(), np.square(clean - noisy.astype(np.float64)).sum()])
