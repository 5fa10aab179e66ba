"""The layers of a float ONNX graph: the units that are quantized or kept in float."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from pocketlens.core.errors import ExportError
from pocketlens.export.sensitivity.settings import Settings

__all__ = ["RULES", "Layer", "find_layers"]

_ACTIVATIONS: Final = ("Relu", "Clip")
_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node that is quantized, with the ReLU or clip that its kernel takes in.

    Attributes:
        name: the module that its weight came from (`backbone.stem.conv1`), else the node's name.
        operator: the ONNX operator, `depthwise Conv` where each channel has its own filter.
        nodes: names of the nodes, in order.
        output: name of the tensor that comes out of the last node.
        weights: number of weight values; 0 for an addition.
        shape: of the weight, as ONNX stores it; empty without one.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    output: str
    weights: int
    shape: tuple[int, ...]


def find_layers(model: onnx.ModelProto, settings: Settings) -> tuple[Layer, ...]:
    """Return the layers that `settings` would quantize, in the order of the graph.

    Raises:
        ExportError: nodes without a name of their own, or nothing to quantize.
    """
    graph = model.graph
    _check_names(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    results = {value.name for value in graph.output}
    layers: list[Layer] = []
    taken: set[str] = set()
    for node in graph.node:
        if node.name in taken or not _quantizable(node, settings, constants):
            continue
        nodes = [node]
        following = readers.get(node.output[0], [])
        joins = len(following) == 1 and following[0].op_type in _ACTIVATIONS and node.output[0] not in results
        if joins and node.op_type not in _ACTIVATIONS and _quantizable(following[0], settings, constants):
            nodes.append(following[0])
        taken.update(part.name for part in nodes)
        layers.append(_layer(nodes, constants))
    if not layers:
        raise ExportError(
            f"ONNX graph {graph.name}",
            expected=f"at least one of {', '.join(settings.operators)} to quantize",
            found="none",
            remedy="Name the graph's operators in the settings, or export it in float.",
        )
    return tuple(layers)


def _check_names(graph: onnx.GraphProto) -> None:
    names = [node.name for node in graph.node]
    if "" in names or len(set(names)) != len(names):
        raise ExportError(
            f"ONNX graph {graph.name}",
            expected="a name of its own for every node",
            found="nodes without one, or two with the same",
            remedy="Export the graph with torch.onnx.export(dynamo=True), which names all nodes.",
        )


def _quantizable(node: onnx.NodeProto, settings: Settings, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type not in settings.operators or node.name in settings.float_nodes:
        return False
    return node.op_type != "MatMul" or not settings.constant_products_only or node.input[1] in constants


def _layer(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]) -> Layer:
    main = nodes[0]
    weight = constants.get(main.input[1]) if main.op_type in _PRODUCTS and len(main.input) > 1 else None
    shape = () if weight is None else tuple(weight.dims)
    count = 1
    for side in shape:
        count *= side
    groups = next((a.i for a in main.attribute if a.name == "group"), 1)
    depthwise = main.op_type == "Conv" and shape and shape[1] == 1 and groups == shape[0] > 1
    stem, dot, last = (weight.name if weight is not None else "").rpartition(".")
    return Layer(
        name=stem if dot and last == "weight" else main.name,
        operator="depthwise Conv" if depthwise else main.op_type,
        nodes=tuple(node.name for node in nodes),
        output=nodes[-1].output[0],
        weights=count if shape else 0,
        shape=shape,
    )


def _ends(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    weighted = [layer for layer in layers if layer.weights]
    return tuple(dict.fromkeys((*weighted[:1], *weighted[-1:])))


def _of(operator: str) -> Callable[[Sequence[Layer]], tuple[Layer, ...]]:
    return lambda layers: tuple(layer for layer in layers if layer.operator == operator)


RULES: Final[Mapping[str, Callable[[Sequence[Layer]], tuple[Layer, ...]]]] = {
    "first and last": _ends,
    "depthwise": _of("depthwise Conv"),
    "additions": _of("Add"),
    "linear": lambda layers: (*_of("Gemm")(layers), *_of("MatMul")(layers)),
}
"""Rules of thumb: by name, the layers that the rule keeps in float. Points of comparison for a search."""
