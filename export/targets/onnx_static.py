"""Static int8 for ONNX Runtime: QDQ with ranges from calibration.

Activations are unsigned, weights per channel in 7 bits (-64..64). On x86 without VNNI the kernels
multiply those through `pmaddubsw`, whose 16-bit sums saturate with 8-bit weights: mean cosine 0.9979
against 0.9995 with 7 bits. Unsigned weights (0.9998) are as right, but take another kernel that is
slower than float. Calibration is min-max: entropy gives the same ranges, percentiles a lower minimum
(0.9955 against 0.9974). All on the image tower of a trained `nano`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketlens.core.bundle import Role
from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity.layers import Layer
from pocketlens.export.sensitivity.quantizer import StaticQuantizer
from pocketlens.export.sensitivity.settings import Settings
from pocketlens.export.targets.onnx_float import kept_in_float, replace_graph
from pocketlens.export.targets.onnx_tables import gather_in_int8, separate_tables

__all__ = ["OPERATORS", "CalibrationFeeds", "quantize_static_int8", "static_quantizer", "write_mixed_int8"]

_CENTRED: Final = "pixels_centred"
_LEVELS: Final = 255

# What is worth quantizing. Softmax, GELU and the norms stay in float: they are cheap, and quantizing
# additions and multiplications around them brought the text embedding down to cosine 0.25 (from
# 0.9999). Residual additions of the image tower are in: each would cost a pair of conversions. So are
# clips (ReLU6): what is clipped away must not count in the range of the convolution before.
OPERATORS: Final[dict[Role, tuple[str, ...]]] = {
    "image_encoder": ("Conv", "Add", "Relu", "Clip", "Gemm", "MatMul"),
    "text_encoder": ("MatMul", "Gemm", "Gather"),
    "caption_prefill": ("MatMul", "Gemm"),
    "caption_decode": ("MatMul", "Gemm", "Gather"),
}


def quantize_static_int8(graph: Graph, source: Path, feeds: Sequence[Feed], path: Path) -> None:
    """Write `source`, the float model of `graph`, to `path` with int8 weights and uint8 activations.

    Args:
        graph: gives the role.
        source: an ONNX file; it is changed: an image encoder's normalisation is folded into its weights, and a
            table that gives the logits too becomes two.
        feeds: calibration inputs of batch 1.
        path: the file to write.

    Raises:
        DataError: no feeds.
        ExportError: an image encoder that does not begin with its normalisation, or nothing to quantize.
    """
    write_mixed_int8(graph.role, static_quantizer(graph.role, source, feeds), (), path)


def static_quantizer(role: Role, source: Path, feeds: Sequence[Feed]) -> StaticQuantizer:
    """Return what makes the graphs of `quantize_static_int8` with any choice of layers in float.

    Args:
        role: of the graph.
        source: an ONNX file; changed as `quantize_static_int8` changes it.
        feeds: calibration inputs of batch 1.

    Raises:
        DataError: no feeds.
        ExportError: an image encoder that does not begin with its normalisation, or nothing to quantize.
    """
    overrides = _prepare(role, source)
    kept = frozenset(_left_alone(onnx.load(source).graph))
    settings = Settings(
        operators=OPERATORS[role], float_nodes=kept, overrides=overrides, bias_correction=role == "image_encoder"
    )
    return StaticQuantizer(source, feeds, settings)


def write_mixed_int8(role: Role, quantizer: StaticQuantizer, float_layers: Iterable[Layer], path: Path) -> None:
    """Write the graph of `role` to `path`, in int8 but for `float_layers`.

    Args:
        role: of the graph.
        quantizer: as `static_quantizer` returned it.
        float_layers: some of its layers.
        path: the file to write.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    kept = {name for layer in float_layers for name in layer.nodes}
    reads_pixels = {node.name for node in quantizer.model.graph.node if _CENTRED in node.input}
    made = ONNXModel(quantizer.quantized(float_layers))
    made.topological_sort()  # the quantizer appends its nodes at the end
    onnx.save(made.model, path)
    # A first convolution in float reads the pixels as floats.
    _finish(path, pixels_as_they_are=role == "image_encoder" and not reads_pixels & kept)


def _prepare(role: Role, source: Path) -> dict[str, list[dict[str, Any]]]:
    """Change the float graph so that it quantizes well; return what is known about its ranges without calibration."""
    if role == "image_encoder":
        return _pixels_as_they_are(_fold_normalisation(source))
    model = onnx.load(source)
    separate_tables(model)
    onnx.save(model, source)
    return {}


def _finish(path: Path, *, pixels_as_they_are: bool) -> None:
    """Take conversions out of a quantized graph that change no number."""
    if pixels_as_they_are:
        _feed_pixels_unconverted(path)
    model = onnx.load(path)
    gather_in_int8(model)
    onnx.save(model, path)


def _pixels_as_they_are(zero_point: int) -> dict[str, list[dict[str, Any]]]:
    """Return the scale of the centred pixels: each level is its own step."""
    return {_CENTRED: [{"scale": np.array(1, np.float32), "zero_point": np.array(zero_point, np.uint8)}]}


def _left_alone(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that are not quantized: `kept_in_float`, and clips that 8 bits cannot stand for.

    The quantizer takes a clip out and lets the ends of the range clip, which is the same only if the range may
    hold 0, as every range in 8 bits does.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def holds_zero(node: onnx.NodeProto) -> bool:
        bounds = [*node.input[1:], "", ""][:2]
        if any(name and name not in constants for name in bounds):
            return False
        low, high = (float(numpy_helper.to_array(constants[name])) if name else 0.0 for name in bounds)
        return low <= 0.0 <= high

    clips = [node for node in graph.node if node.op_type == "Clip"]
    return [*kept_in_float(graph), *(node.name for node in clips if not holds_zero(node))]


class CalibrationFeeds:
    """The iterator that ONNX Runtime's calibration wants."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """Return the next input, `None` at the end."""
        return next(self._feeds, None)


def _first_steps(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the first five nodes that the pixels go through; a look at their shape is not a step."""
    steps: list[onnx.NodeProto] = []
    name = graph.input[0].name
    for _ in range(5):
        users = [node for node in graph.node if name in node.input and node.op_type != "Shape"]
        if len(users) != 1:
            break
        steps.append(users[0])
        name = users[0].output[0]
    return steps


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
    steps = _first_steps(graph)
    found = [node.op_type for node in steps]
    if found != ["Cast", "Transpose", "Mul", "Add", "Conv"]:
        raise ExportError(
            "ONNX graph image_encoder",
            expected="a student that begins with cast, transpose, multiply, add and a convolution",
            found=", ".join(found),
            remedy="Export without int8, or keep normalisation in front of the backbone.",
        )
    _, turn, multiply, add, conv = steps
    scale = numpy_helper.to_array(constants[multiply.input[1]]).reshape(-1).astype(np.float64)
    shift = numpy_helper.to_array(constants[add.input[1]]).reshape(-1).astype(np.float64)
    zero = int(np.clip(np.round(np.mean(-shift / scale)), 0, _LEVELS))
    weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)  # (O, 3, kh, kw)
    if len(conv.input) < 3:  # a vision transformer's patches: what shift and zero point add needs a place
        conv.input.append("pixels_bias")
        constants["pixels_bias"] = numpy_helper.from_array(np.zeros(len(weight), np.float32), "pixels_bias")
    bias = numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64)
    bias = bias + (weight * (shift + zero * scale)[None, :, None, None]).sum(axis=(1, 2, 3))
    weight = weight * scale[None, :, None, None]
    for name, value in ((conv.input[1], weight), (conv.input[2], bias)):
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    centre = helper.make_node("Sub", [turn.output[0], "pixels_zero"], [_CENTRED], name="centre")
    conv.input[0] = _CENTRED
    gone = {multiply.output[0], add.output[0]}
    nodes = []
    for node in graph.node:
        if node.output[0] not in gone:
            nodes += [node, centre] if node.output[0] == turn.output[0] else [node]
    unused = {multiply.input[1], add.input[1]} - {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in constants.items() if name not in unused]
    replace_graph(graph, nodes, [*kept, numpy_helper.from_array(np.array(zero, np.float32), "pixels_zero")])
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
    replace_graph(graph, nodes, [tensor for tensor in graph.initializer if tensor.name in used])
    onnx.checker.check_model(model)
    onnx.save(model, path)
