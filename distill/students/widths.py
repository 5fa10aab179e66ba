"""Widths of layers that structured pruning made narrower: how a student describes them, and how it is built again.

A pruned student is the one of its sizes with some layers cut. The cut is kept as numbers in `StudentConfig.pruned`, so
that a student folder loads without the library that pruned it.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketlens.core.errors import DataError
from pocketlens.distill.students.config import Width

__all__ = ["resize", "widths_of"]

_LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm, nn.LayerNorm)
Layer = nn.Conv2d | nn.Linear | _BatchNorm | nn.LayerNorm


def widths_of(model: nn.Module, whole: nn.Module) -> tuple[Width, ...]:
    """Return the widths of all layers of `model` that are narrower than those of the same name in `whole`."""
    before = dict(whole.named_modules())
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, _LAYERS):
            inputs, outputs = _width(layer)
            if (inputs, outputs) != _width(before[name]):
                found.append(Width(name, inputs, outputs))
    return tuple(found)


@torch.no_grad()
def resize(model: nn.Module, widths: Iterable[Width]) -> None:
    """Make layers of `model` as narrow as `widths` say; each keeps its first inputs and outputs.

    A convolution whose every channel is a group of its own stays one. Layers may be convolutions, linear layers, batch
    norms and layer norms over the last axis.

    Raises:
        DataError: `model` has no such layer, or the layer is narrower than that, or its groups do not divide.
    """
    layers = dict(model.named_modules())
    for width in widths:
        layer = layers.get(width.layer)
        if not isinstance(layer, _LAYERS):
            raise _refused(width, "a convolution, a linear layer or a norm", type(layer).__name__)
        inputs, outputs = _width(layer)
        if not (1 <= width.inputs <= inputs and 1 <= width.outputs <= outputs):
            raise _refused(width, f"1 to {inputs} inputs and 1 to {outputs} outputs", _words(width))
        if isinstance(layer, nn.Conv2d):
            _cut_convolution(layer, width)
        elif isinstance(layer, nn.Linear):
            _keep(layer, "weight", width.outputs, width.inputs)
            _keep(layer, "bias", width.outputs)
            layer.in_features, layer.out_features = width.inputs, width.outputs
        else:
            _cut_norm(layer, width)


def _width(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1], layer.normalized_shape[-1]
    return (layer.num_features, layer.num_features) if isinstance(layer, _BatchNorm) else (0, 0)


def _cut_convolution(layer: nn.Conv2d, width: Width) -> None:
    groups = width.inputs if layer.groups == layer.in_channels > 1 else layer.groups
    if width.inputs % groups or width.outputs % groups:
        raise _refused(width, f"multiples of its {groups} groups", _words(width))
    _keep(layer, "weight", width.outputs, width.inputs // groups)
    _keep(layer, "bias", width.outputs)
    layer.groups, layer.in_channels, layer.out_channels = groups, width.inputs, width.outputs


def _cut_norm(layer: _BatchNorm | nn.LayerNorm, width: Width) -> None:
    if width.inputs != width.outputs:
        raise _refused(width, "as many outputs as inputs", _words(width))
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(layer, name, width.outputs)
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (width.outputs,)
    else:
        layer.num_features = width.outputs


def _keep(layer: nn.Module, name: str, *sizes: int) -> None:
    value = getattr(layer, name, None)
    if value is None:
        return
    kept = value[tuple(slice(size) for size in sizes)].clone()
    setattr(layer, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)


def _words(width: Width) -> str:
    return f"{width.inputs} inputs and {width.outputs} outputs"


def _refused(width: Width, expected: str, found: str) -> DataError:
    return DataError(
        f"pruned layer {width.layer}",
        expected=expected,
        found=found,
        remedy="Take `pruned` in student.json as the pruning wrote it, or train again.",
    )
