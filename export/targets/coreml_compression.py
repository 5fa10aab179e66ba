"""Fewer bits for CoreML: weights by coremltools, activations by ExecuTorch's quantizer and PT2E."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, fx

from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed
from pocketlens.export.targets.coreml_forms import Form, plain

__all__ = ["Weights", "compressed", "quantized"]

Weights = Literal["float", "int8", "palette4", "int4"]

_SMALLEST: Final = 512
"""Weights of at most this many numbers stay as they are: a scale and an operation cost more than they save."""

_BLOCK: Final = {"linear": 32, "gather": 32, "matmul": 32, "conv": 16}
"""Input channels that share a scale in int4. A layer whose channels are no multiple of it stays in float16."""


def compressed(model: Any, weights: Weights) -> Any:
    """Return coremltools' `model` with its weights stored as `weights`.

    - `int8`: symmetric, one scale an output channel.
    - `palette4`: 16 levels for each weight, by one-dimensional k-means; indices of 4 bits.
    - `int4`: symmetric, one scale for each output channel and block of input channels.
    """
    import coremltools.optimize.coreml as cto

    if weights == "float":
        return model
    if weights == "palette4":
        levels = cto.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=_SMALLEST)
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=levels))
    linear: Callable[..., Any] = cto.OpLinearQuantizerConfig
    if weights == "int8":
        config = cto.OptimizationConfig(
            global_config=linear(
                mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=_SMALLEST
            )
        )
    else:
        config = cto.OptimizationConfig(
            op_type_configs={
                operator: linear(
                    mode="linear_symmetric",
                    dtype="int4",
                    granularity="per_block",
                    block_size=block,
                    weight_threshold=_SMALLEST,
                )
                for operator, block in _BLOCK.items()
            },
            op_name_configs=dict.fromkeys(_shared_otherwise(model)),
        )
    return cto.linear_quantize_weights(model, config=config)


def _shared_otherwise(model: Any) -> list[str]:
    """Return the names of constants that layers with different blocks read, or such layers and others.

    Equal constants are stored once: fresh biases of a norm and of a linear layer are all the same zeros. coremltools
    refuses such a constant ("compression config conflict"); here it stays in float16.
    """
    # Not `get_weights_metadata`, which fails on constants in a list of inputs, nor `_get_mil_internal`, whose copy of
    # a vision transformer exceeds Python's recursion limit.
    main = model._mil_program.functions["main"]
    constants = [operation for operation in main.operations if operation.op_type == "const"]
    return [
        constant.name
        for constant in constants
        if len({_BLOCK.get(child.op_type) for child in constant.outputs[0].child_ops}) > 1
    ]


def quantized(form: Form, graph: Graph, feeds: Sequence[Feed]) -> Form:
    """Return `form` with int8 weights and int8 activations, calibrated on `feeds`.

    The way is PT2E: ExecuTorch's `CoreMLQuantizer` says what is quantized, torchao inserts
    observers, and coremltools converts the pairs of quantize and dequantize. (coremltools' own
    quantizers of activations run the model on a device to calibrate, or need older packages.)

    Args:
        form: as `captured` returns it; it is changed.
        graph: what it was captured from.
        feeds: inputs of `graph` at batch 1.

    Raises:
        ExportError: `feeds` is empty.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if not feeds:
        raise ExportError(
            f"coreml graph {graph.role}",
            expected="calibration inputs for w8a8",
            found="none",
            remedy="Hand in calibration samples: ranges of activations are measured, not guessed.",
        )
    prepared = prepare_pt2e(cast("fx.GraphModule", form.module), _quantizer(graph))
    for feed in feeds:
        prepared(*(_row(feed, name) for name in (spec.name for spec in graph.inputs)))
    return replace(form, module=convert_pt2e(prepared))


def _row(feed: Feed, name: str) -> Tensor:
    return plain(torch.from_numpy(feed[name].copy()))


def _quantizer(graph: Graph) -> Any:
    from coremltools.optimize.torch.quantization import (
        LinearQuantizerConfig,
        ModuleLinearQuantizerConfig,
        ObserverType,
        QuantizationScheme,
    )
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class Selected(CoreMLQuantizer):  # type: ignore[misc] # the base class has no types
        """Annotates less than its base class does: see `_worth_it`."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            results = cast("tuple[fx.Node, ...]", annotated.graph.output_node().args[0])
            logits = {node for spec, node in zip(graph.outputs, results, strict=True) if spec.name == "logits"}
            for node in annotated.graph.nodes:
                if node in logits or not _worth_it(node, graph):
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    config = LinearQuantizerConfig(
        global_config=ModuleLinearQuantizerConfig(
            quantization_scheme=QuantizationScheme.symmetric,
            weight_per_channel=True,
            weight_dtype=torch.qint8,
            activation_dtype=torch.quint8,
            activation_observer=ObserverType.min_max,
        )
    )
    return Selected(config)


def _worth_it(node: fx.Node, graph: Graph) -> bool:
    """Return whether 8 bits may stand around `node`.

    In the image tower not around products, nor around sums with a constant: those are the
    normalisation of pixels, which 8 bits would read in steps of two levels, and the unit norms.
    Elsewhere around linear layers alone, and not the one that gives the logits: the sum of scores and
    a mask of -1e4 would get steps of 39, which wipes the scores out, and logits in int8 change most
    greedy captions (measured for XNNPACK and ONNX).
    """
    if graph.role != "image_encoder":
        return node.target is torch.ops.aten.linear.default
    if node.target is torch.ops.aten.add.Tensor:
        return all(isinstance(part, fx.Node) and part.op != "get_attr" for part in node.args)
    return node.target is not torch.ops.aten.mul.Tensor
