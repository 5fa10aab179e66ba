"""MIL operators that work number by number."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pocketlens.export.mil.values import FLOATS, Call, Operator, wrapped

__all__ = ["ARITHMETIC"]


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """`x` and `y` broadcast against each other."""
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor("x"))


def _rsqrt(call: Call) -> Tensor:
    """`1 / sqrt(x + epsilon)`."""
    return torch.rsqrt(call.tensor("x") + call.number("epsilon", 1e-12))


def _inverse(call: Call) -> Tensor:
    """`1 / (x + epsilon)`."""
    return torch.reciprocal(call.tensor("x") + call.number("epsilon", 1e-4))


def _clip(call: Call) -> Tensor:
    """`x` kept within `alpha` and `beta`."""
    return call.tensor("x").clamp(call.number("alpha"), call.number("beta"))


def _gelu(call: Call) -> Tensor:
    """`EXACT` (the error function) or `TANH_APPROXIMATION`."""
    mode = call.text("mode", "EXACT")
    if mode not in {"EXACT", "TANH_APPROXIMATION"}:
        raise call.unsupported(f"mode {mode}")
    return functional.gelu(call.tensor("x"), approximate="none" if mode == "EXACT" else "tanh")


def _sigmoid_hard(call: Call) -> Tensor:
    """`alpha * x + beta`, kept within 0 and 1."""
    return (call.number("alpha") * call.tensor("x") + call.number("beta")).clamp(0, 1)


def _leaky_relu(call: Call) -> Tensor:
    return functional.leaky_relu(call.tensor("x"), call.number("alpha"))


def _real_div(call: Call) -> Tensor:
    """Division of floats; of integers, rounded towards minus infinity."""
    x, y = call.tensor("x"), call.tensor("y")
    return x / y if call.dtype in FLOATS else torch.floor_divide(x, y)


def _converted(x: Tensor, dtype: str) -> Tensor:
    if dtype in FLOATS:
        return x.float()
    return x.to(torch.bool) if dtype == "bool" else wrapped(x, dtype)


def _cast(call: Call) -> Tensor:
    """To another type: floats lose their fraction, integers wrap into the new range."""
    return _converted(call.tensor("x"), call.text("dtype"))


def _fill_like(call: Call) -> Tensor:
    """One `value` in the shape of `ref_tensor`; its type is the value's."""
    return _converted(torch.full(call.tensor("ref_tensor").shape, call.number("value", 0.0)), call.dtype)


def _select(call: Call) -> Tensor:
    """`a` where `cond` is true, else `b`."""
    return torch.where(call.tensor("cond").to(torch.bool), call.tensor("a"), call.tensor("b"))


ARITHMETIC: Final[dict[str, Operator]] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "cast": _cast,
    "clip": _clip,
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "fill_like": _fill_like,
    "floor_div": _binary(torch.floor_divide),
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": lambda call: call.tensor("x"),
    "inverse": _inverse,
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _real_div,
    "relu": _unary(torch.relu),
    "relu6": _unary(functional.relu6),
    "rsqrt": _rsqrt,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": _sigmoid_hard,
    "silu": _unary(functional.silu),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
}
