"""Static int8 for XNNPACK through PT2E: symmetric, per channel for weights, ranges from calibration."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import fx

from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed

__all__ = ["quantize_pt2e"]


def quantize_pt2e(module: fx.GraphModule, graph: Graph, feeds: Sequence[Feed]) -> fx.GraphModule:
    """Return `module`, the captured form of `graph`, with int8 weights and activations.

    Args:
        module: of batch 1; it is changed.
        graph: gives role, names and their order.
        feeds: calibration inputs of batch 1.
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
    prepared = prepare_pt2e(module, quantizer)
    for feed in feeds:
        prepared(*(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs))
    converted: fx.GraphModule = convert_pt2e(prepared)
    return converted
