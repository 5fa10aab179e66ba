"""A student's graph as a float ONNX model: what every other ONNX precision starts from.

Letters: `K` inputs and `N` outputs of a linear layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet

__all__ = ["kept_in_float", "replace_graph", "split_linear_layers", "write_float"]

_OPSET: Final = 20


def write_float(graph: Graph, path: Path) -> None:
    """Write `graph` to `path` with opset 20 and a free batch axis.

    Raises:
        ExportError: the exporter gave nothing.
    """
    inputs = [spec.name for spec in graph.inputs]
    # ONNX is in SSA form: what comes out cannot have the name of what goes in.
    outputs = [f"{s.name}_out" if s.name in inputs else s.name for s in graph.outputs]
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with quiet():
        program = torch.onnx.export(
            graph.module,
            graph.example,
            dynamo=True,
            opset_version=_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise ExportError(
                f"ONNX graph {graph.role}",
                expected="an ONNX program",
                found="nothing",
                remedy="Check the installed torch and onnxscript against constraints.txt.",
            )
        # Inner values and constants are named after operators, and `embedding` is one of those.
        body = program.model.graph
        taken, results = {*inputs, *outputs}, set(body.outputs)
        for value in [*(value for node in body for value in node.outputs), *body.initializers.values()]:
            if value.name in taken and value not in results:
                value.name = f"{value.name}_inner"
        program.save(path, external_data=False)
    model = onnx.load(path)
    _strip_traces(model)
    onnx.save(model, path)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its own machine: paths of source files, stack traces."""
    graph = model.graph
    described = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in described:
        del part.metadata_props[:]
        part.doc_string = ""


def kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that quantization must leave alone.

    They are additions of a constant (biases of the heads, epsilons, positions) and the product that
    gives the logits: with it in int8 41 % of greedy captions keep the eager student's ids, with it in
    float 76 % (a trained `nano`); that costs 3 bytes for each of `width * vocabulary` weights.
    """
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if "logits" in node.output or (node.op_type == "Add" and any(name in constants for name in node.input))
    ]


def split_linear_layers(model: onnx.ModelProto) -> None:
    """Rewrite each `Gemm` of a constant weight `(N, K)` as `MatMul` with its transpose and `Add`.

    The kernels for 4-bit weights exist for `MatMul` only. The one that gives the logits stays.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        factors = {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}
        plain = factors.get("alpha", 1.0) == factors.get("beta", 1.0) == 1.0 and not factors.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in constants or not plain or "logits" in node.output:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        product = f"{node.name}_product"
        if factors.get("transB", 0):
            weight = np.ascontiguousarray(weight.T)
        tensor = numpy_helper.from_array(weight, f"{node.name}_weight")
        constants[tensor.name] = tensor
        biased = len(node.input) > 2
        nodes.append(
            helper.make_node(
                "MatMul", [node.input[0], tensor.name], [product if biased else node.output[0]], name=product
            )
        )
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_bias"))
    used = {name for node in nodes for name in node.input}
    replace_graph(graph, nodes, [tensor for name, tensor in constants.items() if name in used])


def replace_graph(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto]) -> None:
    """Give `graph` other nodes and constants, and drop the stale types of its inner values."""
    # Copies first: what is passed may live in the very lists that are emptied.
    kept_nodes, kept_tensors = list(nodes), list(tensors)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept_nodes)
    graph.initializer.extend(kept_tensors)
