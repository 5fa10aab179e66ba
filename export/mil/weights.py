"""MIL operators of quantization: stored weights made whole, activations in 8 bits."""

from typing import Any, Final

import torch
from torch import Tensor

from pocketlens.export.mil.values import Call, Operator, as_tensor

__all__ = ["CONSTEXPR", "QUANTIZATION", "whole_weight"]

CONSTEXPR: Final = (
    "constexpr_affine_dequantize",
    "constexpr_blockwise_shift_scale",
    "constexpr_lut_to_dense",
    "constexpr_cast",
)
"""Operators that a device evaluates once, when it loads the package: their inputs are all constants."""

_RANGE: Final = {"int8": (-128, 127), "uint8": (0, 255)}


def whole_weight(operation: Any) -> Tensor:
    """Return the weight that a `constexpr_*` operation of coremltools stands for, in float32.

    The values are exactly those of the file's own type: half precision where it says so.
    """
    return as_tensor(operation.materialized_val_inference())


def _grid(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, shaped to broadcast along `axis` of `x`."""
    scale = call.tensor("scale")
    zero = call.tensor("zero_point") if call.has("zero_point") else torch.zeros(1, dtype=torch.int32)
    if scale.numel() == 1:
        return scale.reshape(()), zero.reshape(-1)[0]
    shape = [1] * x.dim()
    shape[call.integer("axis")] = -1
    return scale.reshape(shape), zero.reshape(shape) if zero.numel() > 1 else zero.reshape(())


def _quantize(call: Call) -> Tensor:
    """`round(input / scale) + zero_point`, kept within the 8 bits of `output_dtype`; halves round to even."""
    x = call.tensor("input")
    scale, zero = _grid(call, x)
    low, high = _RANGE[call.text("output_dtype")]
    return (torch.round(x / scale) + zero).clamp(low, high).to(torch.int32)


def _dequantize(call: Call) -> Tensor:
    """`(input - zero_point) * scale`."""
    x = call.tensor("input")
    scale, zero = _grid(call, x)
    return (x - zero).float() * scale


QUANTIZATION: Final[dict[str, Operator]] = {"dequantize": _dequantize, "quantize": _quantize}
