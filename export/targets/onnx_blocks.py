"""8-bit weights in blocks, activations quantized in each call: the fastest int8 form of a decode step on a CPU.

A decode step at batch 1 reads every weight once and multiplies it once, so bytes are time, and `MatMulNBits` reads them
without unpacking. A scale for each output and block of inputs keeps more than one for each output, and nothing is
calibrated. The product that gives the logits is among them: in blocks it keeps its ranking (see docs/captioning.md).

Letters: `K` inputs and `N` outputs of a linear layer.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketlens.export.quiet import quiet
from pocketlens.export.targets.onnx_float import replace_graph

__all__ = ["write_block_int8"]

_BLOCK: Final = 128
"""Inputs of a linear layer that share a scale."""

_BITS: Final = 8

_INT8_ARITHMETIC: Final = 4
"""MatMulNBits' accuracy level 4: activations are quantized to int8 on the fly, products summed in int32."""


def write_block_int8(source: Path, path: Path) -> None:
    """Write the float model `source` to `path` with 8-bit weights, by blocks, in its linear layers.

    Symmetric. What is no linear layer (convolutions, tables) stays in float.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model = onnx.load(source)
    _split_layers(model)
    config = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_ARITHMETIC, bits=_BITS
    )
    with quiet():
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
    onnx.save(quantizer.model.model, path)


def _split_layers(model: onnx.ModelProto) -> None:
    """Rewrite each `Gemm` of a constant weight `(N, K)`, the logits' too, as `MatMul` with its transpose and `Add`."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        attributes = {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}
        scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        if node.op_type != "Gemm" or node.input[1] not in constants or scaled or attributes.get("transA", 0):
            nodes.append(node)
            continue
        [output] = node.output
        weight = numpy_helper.to_array(constants[node.input[1]])
        turned = np.ascontiguousarray(weight.T) if attributes.get("transB", 0) else weight  # (K, N)
        tensor = numpy_helper.from_array(turned, f"{output}_weight")
        constants[tensor.name] = tensor
        product = f"{output}_product" if len(node.input) > 2 else output
        nodes.append(helper.make_node("MatMul", [node.input[0], tensor.name], [product], name=f"{output}_matmul"))
        if product != output:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [output], name=f"{output}_bias"))
    used = {name for node in nodes for name in node.input}
    replace_graph(graph, nodes, [tensor for name, tensor in constants.items() if name in used])
