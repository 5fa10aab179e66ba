"""MIL operators that sum: convolutions, products, pooling, norms, reductions."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pocketlens.export.mil.values import Call, Operator

__all__ = ["LAYERS"]

_EPSILON: Final = 1e-5  # MIL's default of batch_norm and layer_norm


def _padding(call: Call, kernel: list[int], stride: list[int]) -> list[int]:
    """Return (before, after) of every spatial axis, in their order."""
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * len(kernel))
    if kind == "custom":
        return call.integers("pad")
    dilation = call.integers("dilations") if call.has("dilations") else [1] * len(kernel)
    if kind not in {"same", "same_lower"}:
        raise call.unsupported(f"pad_type {kind}")
    sizes = call.tensor("x").shape[2:]
    pads = []
    for size, width, step, spread in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // step) - 1) * step + (width - 1) * spread + 1 - size, 0)
        less = total // 2
        pads += [less, total - less] if kind == "same" else [total - less, less]
    return pads


def _padded(x: Tensor, pads: list[int], value: float) -> Tensor:
    pairs = [pads[index : index + 2] for index in range(0, len(pads), 2)]
    turned = [size for pair in reversed(pairs) for size in pair]
    return functional.pad(x, turned, value=value) if any(turned) else x


def _conv(call: Call) -> Tensor:
    """`x (B, C, *D)`, `weight (C_out, C / groups, *K)`; one or two spatial axes."""
    x, weight = call.tensor("x"), call.tensor("weight")
    axes = x.dim() - 2
    stride = call.integers("strides") if call.has("strides") else [1] * axes
    dilation = call.integers("dilations") if call.has("dilations") else [1] * axes
    x = _padded(x, _padding(call, list(weight.shape[2:]), stride), 0.0)
    if axes not in {1, 2}:
        raise call.unsupported(f"{axes} spatial axes")
    convolve = functional.conv2d if axes == 2 else functional.conv1d
    bias = call.tensor("bias") if call.has("bias") else None
    return convolve(x, weight, bias, stride=stride, dilation=dilation, groups=call.integer("groups", 1))


def _linear(call: Call) -> Tensor:
    """`x (..., I)`, `weight (O, I)`, `bias (O,)`."""
    bias = call.tensor("bias") if call.has("bias") else None
    return functional.linear(call.tensor("x"), call.tensor("weight"), bias)


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    x = x.transpose(-1, -2) if call.flag("transpose_x") else x
    y = y.transpose(-1, -2) if call.flag("transpose_y") else y
    return torch.matmul(x, y)


def _attention(call: Call) -> Tensor:
    """Softmax of `query @ key.T / sqrt(K)`, plus `attn_mask` (added, or True where seen), times `value`."""
    mask = call.tensor("attn_mask") if call.has("attn_mask") else None
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _windows(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Return kernel, stride and (before, after) pads of a pooling over two spatial axes."""
    kernel = call.integers("kernel_sizes")
    if len(kernel) != 2:
        raise call.unsupported(f"{len(kernel)} spatial axes")
    stride = call.integers("strides") if call.has("strides") else [1, 1]
    pads = _padding(call, kernel, stride)
    if call.flag("ceil_mode"):
        # The last window may hang over the end, but must begin inside the input or its padding before.
        for axis, size in enumerate(call.tensor("x").shape[2:]):
            span = size + pads[2 * axis] + pads[2 * axis + 1] - kernel[axis]
            count = -(-span // stride[axis])
            if count * stride[axis] >= size + pads[2 * axis]:
                count -= 1
            pads[2 * axis + 1] += max(count * stride[axis] - span, 0)
    return kernel, stride, pads


def _max_pool(call: Call) -> Tensor:
    kernel, stride, pads = _windows(call)
    return functional.max_pool2d(_padded(call.tensor("x"), pads, -torch.inf), kernel, stride)


def _avg_pool(call: Call) -> Tensor:
    """The mean of each window, with or without what is padding in it."""
    x = call.tensor("x")
    kernel, stride, pads = _windows(call)
    mean = functional.avg_pool2d(_padded(x, pads, 0.0), kernel, stride)
    if not call.flag("exclude_padding_from_average"):
        return mean
    real = functional.avg_pool2d(_padded(torch.ones_like(x), pads, 0.0), kernel, stride)
    return mean / real


def _along_channels(x: Tensor, values: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _batch_norm(call: Call) -> Tensor:
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta` by channel (axis 1)."""
    x = call.tensor("x")
    scale = torch.rsqrt(call.tensor("variance") + call.number("epsilon", _EPSILON))
    scale = scale * call.tensor("gamma") if call.has("gamma") else scale
    x = (x - _along_channels(x, call.tensor("mean"))) * _along_channels(x, scale)
    return x + _along_channels(x, call.tensor("beta")) if call.has("beta") else x


def _layer_norm(call: Call) -> Tensor:
    """Mean 0 and variance 1 over `axes`, then `gamma` and `beta`."""
    x = call.tensor("x")
    axes = call.integers("axes") if call.has("axes") else list(range(2, x.dim()))
    centred = x - x.mean(dim=axes, keepdim=True)
    x = centred * torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + call.number("epsilon", _EPSILON))
    x = x * call.tensor("gamma") if call.has("gamma") else x
    return x + call.tensor("beta") if call.has("beta") else x


def _softmax(call: Call) -> Tensor:
    return torch.softmax(call.tensor("x"), dim=call.integer("axis", -1))


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(call: Call) -> Tensor:
        """Over `axes`, all of them where the file names none."""
        x = call.tensor("x")
        axes = call.integers("axes") if call.has("axes") else list(range(x.dim()))
        return function(x, axes, call.flag("keep_dims"))

    return reduce


def _argmax(call: Call) -> Tensor:
    """The place of the maximum along `axis`; among equals it is not defined which, here the first."""
    return call.tensor("x").argmax(dim=call.integer("axis", -1), keepdim=call.flag("keep_dims"))


LAYERS: Final[dict[str, Operator]] = {
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "reduce_argmax": _argmax,
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "reduce_mean": _reduce(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
}
