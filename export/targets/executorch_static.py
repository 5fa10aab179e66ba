"""Static int8 for XNNPACK through PT2E: symmetric, per channel for weights, ranges from calibration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import fx

from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity.carry_over import keep_quantized
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.targets.executorch_program import captured, write_program

__all__ = ["quantize_pt2e", "write_mixed_program"]


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
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class FloatLogits(XNNPACKQuantizer):  # type: ignore[misc] # the base class has no types
        """Leaves the layer that gives the logits in float: in int8 it alone changes most greedy captions."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            results = cast("tuple[fx.Node, ...]", annotated.graph.output_node().args[0])
            for spec, node in zip(graph.outputs, results, strict=True):
                if spec.name == "logits":
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    config = get_symmetric_quantization_config(is_per_channel=True)
    if graph.role == "image_encoder":
        quantizer = XNNPACKQuantizer().set_global(config)
    else:
        # Only the matrix products. The sum of scores and a mask of -1e4 would get steps of 39 in 8 bits, which
        # wipes the scores out (a trained text tower: cosine 0.56).
        quantizer = FloatLogits().set_operator_type(torch.ops.aten.linear.default, config)
    if keep is not None:
        quantizer.set_filter_function(keep)
    prepared = prepare_pt2e(module, quantizer)
    for feed in feeds:
        prepared(*(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs))
    converted: fx.GraphModule = convert_pt2e(prepared)
    return converted


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
