"""Bias correction: what rounding a convolution's weights adds to its mean output is taken off its bias.

Nagel, van Baalen, Blankevoort, Welling 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2, with means from calibration pictures. Depthwise filters need it most: nine rounded weights that meet inputs
of one sign err in one direction, and the next layers amplify the difference. Rounding errors vary from picture to
picture too; that part stays.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["MEAN_OF", "output_shift", "rounding_error"]

MEAN_OF: Final = 64
"""Means are taken over at most so many calibration pictures: more change nothing that can be measured."""


def rounding_error(weight: Tensor, scale: Tensor, *, most: int) -> Tensor:
    """Return what `weight (O, ...)` becomes in integers up to `most` of `scale`, less `weight`.

    Args:
        weight: of a layer.
        scale: one for all, or `(O,)`.
        most: the largest integer; the smallest is `-most`.
    """
    steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
    error: Tensor = (weight / steps).round().clamp(-most, most) * steps - weight
    return error


@torch.no_grad()
def output_shift(
    mean_input: Tensor,
    error: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return `(O,)`, how far `error` in the weights of a convolution moves the mean of its output.

    Args:
        mean_input: `(C, H, W)`, the mean over pictures of what goes in. A convolution is linear, so the mean of its
            outputs is its output for the mean.
        error: `(O, C / groups, kh, kw)`, what the rounded weights are off by.
        stride: rows, columns.
        dilation: likewise.
        pads: zeros at the top, left, bottom and right, as ONNX orders them.
        groups: of channels.
    """
    top, left, bottom, right = pads
    padded = functional.pad(mean_input[None], (left, right, top, bottom))
    shift = functional.conv2d(padded, error, stride=tuple(stride), dilation=tuple(dilation), groups=groups)
    return shift.mean(dim=(0, 2, 3))
