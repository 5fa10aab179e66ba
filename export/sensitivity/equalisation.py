"""Cross-layer equalisation: the ranges of weights moved from one convolution into the next.

Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.1. Works where what lies between two layers scales with its input
(nothing, or a ReLU). Through GELU, SiLU and hard-swish it cannot.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["equalise"]

_SWEEPS: Final = 20
_CONVERGED: Final = 1e-3


class _Pair(NamedTuple):
    weight: str
    bias: str | None
    following: str
    depthwise: bool


def equalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a graph that computes the same with equalised weights, and the number of layer pairs.

    For channel i between two layers with weight ranges r1 and r2, the first layer's weights are
    divided and the second's multiplied by `s = sqrt(r1 * r2) / r2` (equation 11), in sweeps over all
    pairs until the scales are 1. Channels without weights on either side are left alone.

    Args:
        model: a float graph; it is not changed. Zero pairs return an equal graph.
    """
    equal = onnx.ModelProto()
    equal.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in equal.graph.initializer}
    pairs = list(_pairs(equal.graph, constants))
    values = {
        name: numpy_helper.to_array(constants[name]).astype(np.float64)
        for pair in pairs
        for name in (pair.weight, pair.bias, pair.following)
        if name is not None
    }
    for _ in range(_SWEEPS):
        moved = max((_balance(pair, values) for pair in pairs), default=0.0)
        if moved < _CONVERGED:
            break
    for name, value in values.items():
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return equal, len(pairs)


def _pairs(graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto]) -> Iterator[_Pair]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = {value.name for value in graph.output}
    for node in graph.node:
        if not _weighted(node, constants, readers):
            continue
        tensor, nexts = node.output[0], readers.get(node.output[0], [])
        if len(nexts) == 1 and nexts[0].op_type == "Relu" and tensor not in results:
            tensor, nexts = nexts[0].output[0], readers.get(nexts[0].output[0], [])
        if len(nexts) != 1 or tensor in results or not _weighted(nexts[0], constants, readers):
            continue
        following = nexts[0]
        groups = _groups(following)
        channels, shape = constants[node.input[1]].dims[0], constants[following.input[1]].dims
        depthwise = groups == shape[0] == channels and groups > 1
        if depthwise or (groups == 1 and shape[1] == channels):
            bias = node.input[2] if len(node.input) > 2 else None
            yield _Pair(node.input[1], bias, following.input[1], depthwise)


def _weighted(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], readers: dict[str, list[onnx.NodeProto]]
) -> bool:
    """Tell whether `node` is a convolution whose weight and bias nobody shares."""
    own = list(node.input[1:])
    return node.op_type == "Conv" and all(name in constants and len(readers[name]) == 1 for name in own)


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _balance(pair: _Pair, values: dict[str, NDArray[np.float64]]) -> float:
    """Equalise one pair in place; return how far the largest scale was from 1, as a logarithm."""
    first, second = values[pair.weight], values[pair.following]
    axis = 0 if pair.depthwise else 1
    before = np.abs(first).max(axis=tuple(range(1, first.ndim)))  # (channels,)
    after = np.abs(second).max(axis=tuple(a for a in range(second.ndim) if a != axis))
    alive = (before > 0) & (after > 0)
    scale = np.ones_like(before)
    scale[alive] = np.sqrt(before[alive] / after[alive])  # = sqrt(r1 * r2) / r2
    first /= _along(scale, 0, first.ndim)
    if pair.bias is not None:
        values[pair.bias] /= scale
    second *= _along(scale, axis, second.ndim)
    return float(np.abs(np.log(scale)).max())


def _along(scale: NDArray[np.float64], axis: int, ndim: int) -> NDArray[np.float64]:
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)
