"""MIL operators that move numbers and leave them as they are."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pocketlens.export.mil.values import Call, Operator

__all__ = ["ARRANGEMENT"]


def _reshape(call: Call) -> Tensor:
    """To `shape`, in which -1 is what is left over and 0 keeps the axis."""
    x = call.tensor("x")
    shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(call.integers("shape"))]
    return x.reshape(shape)


def _transpose(call: Call) -> Tensor:
    return call.tensor("x").permute(call.integers("perm"))


def _expand_dims(call: Call) -> Tensor:
    """New axes of length 1; `axes` counts in the result."""
    x, axes = call.tensor("x"), call.integers("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.squeeze(tuple(call.integers("axes"))) if call.has("axes") else x.squeeze()


def _slice_by_index(call: Call) -> Tensor:
    """`begin : end : stride` of every axis; masks open an end or drop an axis."""
    x = call.tensor("x")
    rank = x.dim()
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride") if call.has("stride") else [1] * rank
    opened = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    squeezed = call.flags("squeeze_mask", rank)
    if any(step < 1 for step in stride):
        raise call.unsupported(f"stride {stride}")
    picked: list[slice | int] = []
    for axis in range(rank):
        if squeezed[axis]:
            picked.append(begin[axis])
        else:
            first = None if opened[0][axis] else begin[axis]
            last = None if opened[1][axis] else end[axis]
            picked.append(slice(first, last, stride[axis]))
    return x[tuple(picked)]


def _slice_by_size(call: Call) -> Tensor:
    """`size` elements of every axis from `begin` on; -1 takes the rest."""
    x = call.tensor("x")
    for axis, (first, size) in enumerate(zip(call.integers("begin"), call.integers("size"), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if size == -1 else size)
    return x


def _concat(call: Call) -> Tensor:
    if call.flag("interleave"):
        raise call.unsupported("interleave")
    return torch.cat(call.tensors("values"), dim=call.integer("axis"))


def _stack(call: Call) -> Tensor:
    return torch.stack(call.tensors("values"), dim=call.integer("axis"))


def _split(call: Call) -> tuple[Tensor, ...]:
    """Into parts of `split_sizes`, or `num_splits` equal ones."""
    x, axis = call.tensor("x"), call.integer("axis")
    if call.has("split_sizes"):
        sizes = call.integers("split_sizes")
    else:
        count = call.integer("num_splits")
        sizes = [x.shape[axis] // count] * count
    return torch.split(x, sizes, dim=axis)


def _tile(call: Call) -> Tensor:
    return call.tensor("x").repeat(call.integers("reps"))


def _pad(call: Call) -> Tensor:
    """`pad` is (before, after) of each of the last axes, in their order."""
    mode = call.text("mode", "constant")
    if mode != "constant":
        raise call.unsupported(f"mode {mode}")
    sizes = call.integers("pad")
    pairs = [sizes[index : index + 2] for index in range(0, len(sizes), 2)]
    turned = [size for pair in reversed(pairs) for size in pair]  # torch begins with the last axis
    return functional.pad(call.tensor("x"), turned, value=call.number("constant_val", 0.0))


def _gather(call: Call) -> Tensor:
    """Rows of `x` along `axis`; negative indices count from the end."""
    if call.integer("batch_dims", 0):
        raise call.unsupported("batch_dims")
    x, indices, axis = call.tensor("x"), call.tensor("indices"), call.integer("axis", 0)
    axis %= x.dim()
    size = x.shape[axis]
    if bool(((indices < -size) | (indices >= size)).any()):
        raise call.unsupported(f"an index outside of {size} rows")
    rows = x.index_select(axis, torch.remainder(indices, size).reshape(-1))
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(call: Call) -> Tensor:
    """`x[i, j, ...]` for each (i, j, ...) along the last axis of `indices`."""
    x, indices = call.tensor("x"), call.tensor("indices").long()
    depth = indices.shape[-1]
    sizes = torch.tensor(x.shape[:depth])
    if bool(((indices < -sizes) | (indices >= sizes)).any()):
        raise call.unsupported(f"an index outside of {list(x.shape[:depth])}")
    return x[tuple(torch.remainder(indices, sizes).unbind(-1))]


def _read_state(call: Call) -> Tensor:
    """The buffer as it is now."""
    return call.state[str(call.inputs["input"])]


def _update_state(call: Call) -> Tensor:
    """Writes `value` into the buffer and returns it."""
    name, value = str(call.inputs["state"]), call.tensor("value")
    call.state[name] = value.to(call.state[name].dtype)
    return call.state[name]


ARRANGEMENT: Final[dict[str, Operator]] = {
    "concat": _concat,
    "coreml_update_state": _update_state,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "pad": _pad,
    "read_state": _read_state,
    "reshape": _reshape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
