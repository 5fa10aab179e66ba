"""ONNX: opset 20 with a free batch axis; int8 as static QDQ."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed

__all__ = ["OnnxTarget"]

_OPSET: Final = 20
_CENTRED: Final = "pixels_centred"
_LEVELS: Final = 255

# What is worth quantizing. Softmax, GELU and the norms stay in float: they are cheap, and quantizing
# additions and multiplications around them brought the text embedding down to cosine 0.25 (from
# 0.9999). Residual additions of the image tower are in: each would cost a pair of conversions.
_OPERATORS: Final[dict[Role, tuple[str, ...]]] = {
    "image_encoder": ("Conv", "Add", "Relu", "Gemm", "MatMul"),
    "text_encoder": ("MatMul", "Gemm", "Gather"),
    "caption_prefill": ("MatMul", "Gemm"),
    "caption_decode": ("MatMul", "Gemm", "Gather"),
}


@dataclass(frozen=True)
class OnnxTarget:
    """Writes `.onnx` files.

    Int8 activations are unsigned, int8 weights per channel in 7 bits (-64..64). On x86 without VNNI
    the kernels multiply those through `pmaddubsw`, whose 16-bit sums saturate with 8-bit weights:
    mean cosine 0.9979 against 0.9995 with 7 bits. Unsigned weights (0.9998) are as right, but take
    another kernel that is slower than float. Calibration is min-max: entropy gives the same ranges,
    percentiles a lower minimum (0.9955 against 0.9974). All on the image tower of a trained `nano`.
    """

    engine: ClassVar[Literal["onnxruntime"]] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (`fp32`, `int8`) in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; their folders exist.
            feeds: calibration inputs of batch 1; used for `int8`.

        Raises:
            ExportError: the graph has no image input of the expected form (`int8`).
        """
        first = next(iter(paths.values()))
        with tempfile.TemporaryDirectory(dir=first.parent) as folder:
            source = Path(folder, "float.onnx")
            _write_float(graph, source)
            if "fp32" in paths:
                shutil.copyfile(source, paths["fp32"])
            if "int8" in paths:
                _quantize(graph, source, feeds, paths["int8"])

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return graph.inputs

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return graph.outputs

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        names = [spec.name for spec in graph.inputs]
        renamed = [spec.name for spec in graph.outputs if spec.name in names]
        return tuple(f"In the file the output `{name}` is called `{name}_out`." for name in renamed)


def _write_float(graph: Graph, path: Path) -> None:
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
        # Inner values are named after operators, and `embedding` is one of those.
        taken, results = {*inputs, *outputs}, set(program.model.graph.outputs)
        for node in program.model.graph:
            for value in node.outputs:
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


def _quantize(graph: Graph, source: Path, feeds: Sequence[Feed], path: Path) -> None:
    # Imported here: onnxruntime.quantization costs half a second.
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    # Attention's products of two activations stay in float: they gain no speed and lose accuracy.
    options: dict[str, object] = {"MatMulConstBOnly": True}
    if graph.role == "image_encoder":
        zero_point = _fold_normalisation(source)
        options["TensorQuantOverrides"] = {
            _CENTRED: [{"scale": np.array(1, np.float32), "zero_point": np.array(zero_point, np.uint8)}]
        }
    with quiet():
        quantize_static(
            source,
            path,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS[graph.role]),
            nodes_to_exclude=_kept_in_float(source),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
        )
    if graph.role == "image_encoder":
        _feed_pixels_unconverted(path)


def _kept_in_float(path: Path) -> list[str]:
    """Return the names of the nodes that quantization must leave alone.

    They are additions of a constant (biases of the heads, epsilons, positions) and the product that
    gives the logits: with it in int8 41 % of greedy captions keep the eager student's ids, with it in
    float 76 % (a trained `nano`); that costs 3 bytes for each of `width * vocabulary` weights.
    """
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if "logits" in node.output or (node.op_type == "Add" and any(name in constants for name in node.input))
    ]


class _Reader:
    """The iterator that ONNX Runtime's calibration wants."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _fold_normalisation(path: Path) -> int:
    """Move mean and standard deviation into the first convolution; return the pixels' zero point.

    The student computes `conv(pixels * scale + shift)`. That equals `conv'(pixels - zero) + bias'`
    for any `zero`, except within the padding, where the picture ends: there `conv'` sees the level
    `zero` instead of the mean. `zero` is the integer nearest to the mean level, so that the
    difference is below a level (measured: cosine to the unfolded graph 0.99997). The gain: pixels
    are 8-bit integers already and go into the first quantized convolution as they are, where
    normalising them first took 1.0 of 2.1 ms.
    """
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = [node.op_type for node in graph.node[:5]]
    if found != ["Cast", "Transpose", "Mul", "Add", "Conv"]:
        raise ExportError(
            "ONNX graph image_encoder",
            expected="a student that begins with cast, transpose, multiply, add and a convolution",
            found=", ".join(found),
            remedy="Export without int8, or keep normalisation in front of the backbone.",
        )
    cast, turn, multiply, add, conv = graph.node[:5]
    scale = numpy_helper.to_array(constants[multiply.input[1]]).reshape(-1).astype(np.float64)
    shift = numpy_helper.to_array(constants[add.input[1]]).reshape(-1).astype(np.float64)
    zero = int(np.clip(np.round(np.mean(-shift / scale)), 0, _LEVELS))
    weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)  # (O, 3, kh, kw)
    bias = numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64)
    bias = bias + (weight * (shift + zero * scale)[None, :, None, None]).sum(axis=(1, 2, 3))
    weight = weight * scale[None, :, None, None]
    for name, value in ((conv.input[1], weight), (conv.input[2], bias)):
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    centre = helper.make_node("Sub", [turn.output[0], "pixels_zero"], [_CENTRED], name="centre")
    conv.input[0] = _CENTRED
    nodes = [cast, turn, centre, *graph.node[4:]]
    unused = {multiply.input[1], add.input[1]}
    kept = [tensor for tensor in graph.initializer if tensor.name not in unused]
    _replace(graph, nodes, [*kept, numpy_helper.from_array(np.array(zero, np.float32), "pixels_zero")])
    onnx.save(model, path)
    return zero


def _feed_pixels_unconverted(path: Path) -> None:
    """Cut `cast, subtract, quantize` out of a quantized image encoder: the pixels are that already."""
    model = onnx.load(path)
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    quantize = next(node for node in graph.node if _CENTRED in node.input)
    dequantize = next(node for node in graph.node if quantize.output[0] in node.input)
    centre = maker[_CENTRED]
    turn = maker[centre.input[0]]
    cast = maker[turn.input[0]]
    turn.input[0] = cast.input[0]
    dequantize.input[0] = turn.output[0]
    cut = {node.name for node in (cast, centre, quantize)}
    nodes = [node for node in graph.node if node.name not in cut]
    used = {name for node in nodes for name in node.input}
    _replace(graph, nodes, [tensor for tensor in graph.initializer if tensor.name in used])
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto]) -> None:
    """Give `graph` other nodes and constants, and drop the stale types of its inner values."""
    kept_nodes, kept_tensors = list(nodes), list(tensors)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept_nodes)
    graph.initializer.extend(kept_tensors)
