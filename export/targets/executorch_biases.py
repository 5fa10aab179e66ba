"""Bias correction of a graph that PT2E has prepared and calibrated; see `pocketlens.export.bias_correction`."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import Parameter

from pocketlens.export.bias_correction import MEAN_OF, output_shift, rounding_error

__all__ = ["correct_biases"]

_CONV = torch.ops.aten.conv2d.default
_NO_PADS = (0, 0)
_ONES = (1, 1)


@torch.no_grad()
def correct_biases(prepared: fx.GraphModule, inputs: Sequence[tuple[Tensor, ...]]) -> None:
    """Take off the biases of `prepared`'s int8 convolutions what rounding their weights adds to their mean output.

    Args:
        prepared: what `prepare_pt2e` returned, with ranges; it is changed, its student's weights are not.
        inputs: calibration inputs of batch 1; at most `MEAN_OF` of them are run.
    """
    convolutions = [node for node in prepared.graph.nodes if node.target is _CONV and _rounded(prepared, node)]
    if not convolutions:
        return
    means = _Means(prepared, convolutions)
    for one in inputs[:MEAN_OF]:
        means.run(*one)
    for node in convolutions:
        stride, padding, dilation, groups = _form(node)
        observer: Any = prepared.get_submodule(str(node.args[1].target))
        weight = _value(prepared, node.args[1].args[0])
        scale, _ = observer.calculate_qparams()
        shift = output_shift(
            means.of(node),
            rounding_error(weight, scale.to(weight), most=observer.quant_max),
            stride=stride,
            pads=(*padding, *padding),
            dilation=dilation,
            groups=groups,
        )
        # A parameter of its own: the captured one may be the student's.
        name = f"corrected_{node.name}_bias"
        bias = _source(node.args[2])
        prepared.register_parameter(name, Parameter(_value(prepared, bias) - shift, requires_grad=False))
        bias.target = name
    prepared.recompile()


class _Means(fx.Interpreter):
    """Runs a graph and keeps the mean of what goes into some of its convolutions."""

    def __init__(self, module: fx.GraphModule, convolutions: Sequence[fx.Node]) -> None:
        super().__init__(module)
        self._sums: dict[fx.Node, Tensor] = {}
        self._wanted, self._runs = set(convolutions), 0

    def run(self, *args: Any, **options: Any) -> Any:
        self._runs += 1
        return super().run(*args, **options)

    def run_node(self, n: fx.Node) -> Any:
        if n in self._wanted:
            seen = self.env[cast("fx.Node", n.args[0])][0].to(torch.float64)
            self._sums[n] = self._sums[n] + seen if n in self._sums else seen
        return super().run_node(n)

    def of(self, node: fx.Node) -> Tensor:
        """Return `(C, H, W)`."""
        return (self._sums[node] / self._runs).to(torch.float32)


def _rounded(prepared: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether the convolution `node` has an observed weight and a bias of its own."""
    weight, bias = node.args[1], (node.args[2] if len(node.args) > 2 else None)
    if not isinstance(weight, fx.Node) or not isinstance(bias, fx.Node) or weight.op != "call_module":
        return False
    source = _source(bias)
    return source.op == "get_attr" and len(source.users) == 1


def _source(node: fx.node.Argument) -> fx.Node:
    """Return what an observer looks at, or `node` itself."""
    found = cast("fx.Node", node)
    return cast("fx.Node", found.args[0]) if found.op == "call_module" else found


def _form(node: fx.Node) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    """Return stride, padding, dilation and groups of a convolution."""
    given: list[Any] = list(node.args[3:])
    given += [_ONES, _NO_PADS, _ONES, 1][len(given) :]
    stride, padding, dilation = (_pair(one) for one in given[:3])
    return stride, padding, dilation, given[3]


def _pair(sizes: Sequence[int]) -> Sequence[int]:
    return tuple(sizes) * (2 if len(sizes) == 1 else 1)


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the tensor that a `get_attr` node reads."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return cast("Tensor", value)
