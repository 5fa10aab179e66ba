"""Static int8 for XNNPACK through PT2E: symmetric, per channel for weights.

Ranges of activations come from calibration, or from the student where it was trained for int8. After calibration the
biases of convolutions are corrected (`pocketlens.export.bias_correction`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx

from pocketlens.core.errors import ExportError
from pocketlens.distill.compression.quantizer import static_quantizer
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity.carry_over import keep_quantized
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.targets.executorch_biases import correct_biases
from pocketlens.export.targets.executorch_program import captured, write_program

__all__ = ["quantize_pt2e", "write_mixed_program"]

_LEAST_SCALE = 2**-12  # as XNNPACK's own config has it


def quantize_pt2e(
    module: fx.GraphModule,
    graph: Graph,
    feeds: Sequence[Feed],
    *,
    keep: Callable[[fx.Node], bool] | None = None,
) -> fx.GraphModule:
    """Return `module`, the captured form of `graph`, with int8 weights and activations.

    Args:
        module: of batch 1; it is changed.
        graph: gives role, names and their order.
        feeds: calibration inputs of batch 1.
        keep: false for nodes that stay in float; by default all are quantized.

    Raises:
        ExportError: the graph brings ranges of its own, and one is missing or of no node.
    """
    # Imported here: torchao costs a second.
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = static_quantizer(graph.role, [spec.name for spec in graph.outputs], keep=keep)
    prepared = prepare_pt2e(module, quantizer)
    inputs = [tuple(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs) for feed in feeds]
    for one in inputs:
        prepared(*one)
    if graph.ranges:
        _hand_over(prepared, graph)  # trained with the rounding: nothing to correct
    elif graph.role == "image_encoder":
        correct_biases(prepared, inputs)
    converted: fx.GraphModule = convert_pt2e(prepared)
    return converted


def _hand_over(prepared: fx.GraphModule, graph: Graph) -> None:
    """Give the graph's trained ranges to the observers of `prepared`, in place of what calibration found."""
    from torchao.quantization.pt2e import MinMaxObserver

    observed = {
        cast("fx.Node", node.args[0]).name: str(node.target)
        for node in prepared.graph.nodes
        if node.op == "call_module" and hasattr(prepared.get_submodule(str(node.target)), "calculate_qparams")
    }
    found: dict[str, Any] = {name: prepared.get_submodule(target) for name, target in observed.items()}
    activations = {name for name, one in found.items() if one.qscheme == torch.per_tensor_affine}
    if activations - graph.ranges.keys():
        raise ExportError(
            f"trained ranges of {graph.role}",
            expected=f"one for each of {len(activations)} quantized activations",
            found=f"none for {', '.join(sorted(activations - graph.ranges.keys())[:3])}",
            remedy="Train for int8 again with this version, or export the student without its ranges.",
        )
    for name in activations:
        own = found[name]
        low, high = graph.ranges[name]
        fixed = MinMaxObserver(
            dtype=own.dtype, qscheme=own.qscheme, quant_min=own.quant_min, quant_max=own.quant_max, eps=_LEAST_SCALE
        )
        fixed.min_val.copy_(low)
        fixed.max_val.copy_(high)
        setattr(prepared, observed[name], fixed)


def write_mixed_program(
    graph: Graph, path: Path, feeds: Sequence[Feed], *, layers: Sequence[Layer], float_layers: Sequence[Layer]
) -> Delegation:
    """Write `graph` to `path` in int8 but for `float_layers`, and return what XNNPACK took over.

    Args:
        graph: what to write.
        path: the `.pte` file.
        feeds: calibration inputs of batch 1.
        layers: all layers of the graph in its ONNX form; see `keep_quantized`.
        float_layers: some of them.

    Raises:
        ExportError: the layers of the two forms do not match, or XNNPACK took nothing.
    """
    # Imported here: it costs seconds, and warns.
    with quiet(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        module = captured(graph.module, graph.example_row).module()
        quantized = quantize_pt2e(module, graph, feeds, keep=keep_quantized(module, layers, float_layers))
        program = torch.export.export(quantized, graph.example_row)
        return write_program(program, graph.role, path, backend="XNNPACK", partitioner=XnnpackPartitioner())
