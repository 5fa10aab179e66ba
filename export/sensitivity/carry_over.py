"""A choice of float layers, made on the ONNX graph, for ExecuTorch's XNNPACK quantizer."""

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import fx

from pocketlens.core.errors import ExportError
from pocketlens.export.sensitivity.layers import Layer

__all__ = ["keep_quantized"]

_PRODUCTS: Final = {
    "Conv": torch.ops.aten.conv2d.default,
    "depthwise Conv": torch.ops.aten.conv2d.default,
    "Gemm": torch.ops.aten.linear.default,
    "MatMul": torch.ops.aten.linear.default,
}


def keep_quantized(
    module: fx.GraphModule, layers: Sequence[Layer], float_layers: Sequence[Layer]
) -> Callable[[fx.Node], bool]:
    """Return the filter for `XNNPACKQuantizer.set_filter_function`: false for what stays in float.

    Both graphs come from one trace of one module, so the k-th convolution of the one is the k-th of
    the other, likewise the linear layers; the shapes of the weights must agree. Modules' names are no
    help: folding the batch norms and exporting again loses them. Additions are not carried over; there
    the quantizer decides by itself.

    What the filter says of a convolution holds for its fused ReLU as well: the quantizer asks about
    all nodes of a pattern, and one that says no is enough.

    Args:
        module: what is handed to `prepare_pt2e`, batch norms folded.
        layers: all layers of the ONNX graph, in its order (`StaticQuantizer.layers`).
        float_layers: the choice.

    Raises:
        ExportError: the two graphs do not have the same layers.
    """
    kept = set(float_layers)
    names: set[str] = set()
    for target in dict.fromkeys(_PRODUCTS.values()):
        ours = [layer for layer in layers if layer.weights and _PRODUCTS.get(layer.operator) is target]
        theirs = [node for node in module.graph.nodes if node.target is target]
        shapes = [_weight_shape(module, node) for node in theirs]
        if len(ours) != len(theirs) or any(not _same(a, b) for a, b in zip(ours, shapes, strict=True)):
            raise ExportError(
                f"mixed precision of {target}",
                expected=f"the {len(ours)} weights of the ONNX graph, in its order",
                found=f"{len(theirs)} weights, or others",
                remedy="Export both targets from one student with its branches fused and its norms folded.",
            )
        names |= {node.name for layer, node in zip(ours, theirs, strict=True) if layer in kept}
    return lambda node: node.name not in names


def _same(layer: Layer, shape: tuple[int, ...]) -> bool:
    # ONNX stores the weight of a MatMul transposed, that of a Gemm as its attributes say.
    return shape in {layer.shape, layer.shape[::-1]} if len(shape) == 2 else shape == layer.shape


def _weight_shape(module: fx.GraphModule, node: fx.Node) -> tuple[int, ...]:
    value: Any = module
    for part in str(cast("fx.Node", node.args[1]).target).split("."):
        value = getattr(value, part)
    return tuple(value.shape)
