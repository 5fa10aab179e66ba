"""One layer of a finished quantized graph alone, in the float graph: for precisions that have no choice of layers.

Dynamic int8 and 4-bit weights keep the names of the tensors between layers. So a layer's quantized form is what
stands, in the quantized graph, between tensors that the float graph has as well.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from pocketlens.export.sensitivity.answers import run_graph, snr_db
from pocketlens.export.sensitivity.layers import Layer, find_layers
from pocketlens.export.sensitivity.measure import Progress, Sensitivity
from pocketlens.export.sensitivity.settings import Settings

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["measure_transplants", "transplanted"]

_OPERATORS = ("MatMul", "Gemm", "Gather")


def measure_transplants(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    feeds: "Sequence[Feed]",
    *,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Sensitivity, ...]:
    """Return what quantizing each layer does, for those that `quantized` does not hold as they were.

    Args:
        model: the float graph.
        quantized: made from it, without calibration.
        feeds: real inputs.
        progress: called after each layer.
    """
    expected = run_graph(model, feeds)
    found = []
    layers = find_layers(model, Settings(operators=_OPERATORS))
    for done, layer in enumerate(layers, start=1):
        alone = transplanted(model, quantized, layer)
        if alone is not None:
            answers = run_graph(alone, feeds)
            found.append(Sensitivity(layer, min(snr_db(expected[name], answers[name]) for name in expected), None))
        progress("sensitivity", done, len(layers))
    return tuple(found)


def transplanted(model: onnx.ModelProto, quantized: onnx.ModelProto, layer: Layer) -> onnx.ModelProto | None:
    """Return `model` with `layer` as it stands in `quantized`; `None` if it stands there as it was."""
    made = {name: node for node in model.graph.node for name in node.output}
    known = {*made, *(value.name for value in model.graph.input)}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    taken: dict[str, onnx.NodeProto] = {}
    names = [layer.output]
    while names:
        node = makers.get(names.pop())
        if node is None or node.output[0] in taken:
            continue
        taken[node.output[0]] = node
        names += [name for name in node.input if name not in known]
    if {node.op_type for node in taken.values()} <= {made[layer.output].op_type}:
        return None
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    order = [node for node in quantized.graph.node if node.output[0] in taken]
    kept = []
    for node in graph.node:
        kept += order if layer.output in node.output else [node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    present = {tensor.name for tensor in graph.initializer}
    used = {name for node in order for name in node.input}
    # A tensor of one name may have another form: the float model's stays where other layers read it.
    graph.initializer.extend(t for t in quantized.graph.initializer if t.name in used - present)
    domains = {entry.domain for entry in alone.opset_import}
    alone.opset_import.extend(
        helper.make_opsetid(entry.domain, entry.version)
        for entry in quantized.opset_import
        if entry.domain not in domains
    )
    return alone
