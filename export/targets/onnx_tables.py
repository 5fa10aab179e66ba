"""Tables of token vectors in quantized ONNX graphs."""

import onnx

from pocketlens.export.targets.onnx_float import replace_graph

__all__ = ["gather_in_int8", "separate_tables"]


def separate_tables(model: onnx.ModelProto) -> None:
    """Give each `Gemm` a weight of its own that shares it with another node; call it before quantization.

    A captioner may take its logits from its table of tokens, as BLIP does. ONNX Runtime's quantizer turns a Gemm
    into a MatMul and transposes the weight in place (onnxruntime 1.31.1, `ONNXModel.replace_gemm_with_matmul`), so
    that the table would be read by column; and a product that stays in float would read a table in int8.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        readers = [other for other in graph.node if name in other.input]
        if name in constants and len(readers) > 1:
            own = onnx.TensorProto()
            own.CopyFrom(constants[name])
            own.name = f"{name}_of_{node.name}"
            node.input[1] = own.name
            graph.initializer.append(own)


def gather_in_int8(model: onnx.ModelProto) -> None:
    """Let each `Gather` read its quantized table as it is, and dequantize the rows that it picked.

    ONNX Runtime's quantizer writes dequantize (the whole table), gather, quantize with the scale of the table,
    dequantize. Without the first and the third of these the rows are the same numbers. ONNX Runtime's
    optimizer finds that out by itself; with optimizations off, and in readers without such a rule, every call would
    convert the whole table.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    gone = set()
    for node in graph.node:
        opened = maker.get(node.input[0]) if node.op_type == "Gather" else None
        if opened is None or opened.op_type != "DequantizeLinear" or opened.input[0] not in constants:
            continue
        readers = [other for other in graph.node if node.output[0] in other.input]
        closed = readers[0] if len(readers) == 1 else None
        if closed is None or closed.op_type != "QuantizeLinear" or closed.input[1:] != opened.input[1:]:
            continue
        node.input[0], node.output[0] = opened.input[0], closed.output[0]
        gone.add(closed.output[0])
    kept = [node for node in graph.node if node.op_type != "QuantizeLinear" or node.output[0] not in gone]
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    kept = [node for node in kept if node.op_type != "DequantizeLinear" or node.output[0] in used]
    replace_graph(graph, kept, graph.initializer)
