"""Bias correction of a float ONNX graph that is going to be quantized; see `pocketlens.export.bias_correction`."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pocketlens.export.bias_correction import MEAN_OF, output_shift, rounding_error
from pocketlens.export.sensitivity.settings import Settings

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["bias_shifts", "shift_biases"]

_LARGEST: Final = {7: 64, 8: 127}
"""By bits, the largest integer that ONNX Runtime's symmetric quantization of weights uses."""


def bias_shifts(
    model: onnx.ModelProto, feeds: "Sequence[Feed]", nodes: Collection[str], settings: Settings
) -> dict[str, NDArray[np.float32]]:
    """Return how far rounded weights move the mean output `(O,)` of each convolution, by node.

    Only two-dimensional convolutions with a constant weight and a constant bias of their own are looked at.

    Args:
        model: the float graph.
        feeds: calibration inputs of batch 1; at most `MEAN_OF` of them are run.
        nodes: names of what is quantized.
        settings: how.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in nodes
        and len(node.input) == 3
        and all(name in constants for name in node.input[1:])
        and len(constants[node.input[1]].dims) == 4
        and readers[node.input[2]] == 1
        and not _pads_itself(node)
    ]
    means = _means(model, feeds[:MEAN_OF], [node.input[0] for node in convolutions])
    shifts = {}
    for node in convolutions:
        weight = torch.from_numpy(numpy_helper.to_array(constants[node.input[1]]).astype(np.float32))
        largest = _LARGEST[settings.weight_bits]
        reach = weight.abs().amax(dim=(1, 2, 3)) if settings.per_channel else weight.abs().amax()
        error = rounding_error(weight, (reach / largest).clamp(min=1e-30), most=largest)
        form: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        shifts[node.name] = output_shift(
            torch.from_numpy(means[node.input[0]]),
            error,
            stride=form.get("strides", (1, 1)),
            pads=form.get("pads", (0, 0, 0, 0)),
            dilation=form.get("dilations", (1, 1)),
            groups=form.get("group", 1),
        ).numpy()
    return shifts


def shift_biases(model: onnx.ModelProto, shifts: Mapping[str, NDArray[np.float32]], nodes: Collection[str]) -> None:
    """Take `shifts` off the biases of `nodes` in `model`."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name in nodes and node.name in shifts:
            bias = constants[node.input[2]]
            corrected = numpy_helper.to_array(bias) - shifts[node.name]
            bias.CopyFrom(numpy_helper.from_array(corrected.astype(np.float32), bias.name))


def _pads_itself(node: onnx.NodeProto) -> bool:
    """Tell whether the padding depends on the input's size (`auto_pad`); none of ours does."""
    return any(one.name == "auto_pad" and one.s not in {b"", b"NOTSET"} for one in node.attribute)


def _means(model: onnx.ModelProto, feeds: "Sequence[Feed]", names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return the mean over `feeds` of each tensor in `names`, without the batch axis."""
    import onnxruntime

    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    results = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in results)
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, NDArray[np.float64]] = {}
    for feed in feeds:
        for name, value in zip(wanted, session.run(wanted, feed), strict=True):
            sums[name] = sums.get(name, 0.0) + np.asarray(value[0], np.float64)
    return {name: (total / len(feeds)).astype(np.float32) for name, total in sums.items()}
