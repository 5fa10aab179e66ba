"""Values that flow through a MIL program: torch tensors in the types that MIL declares.

MIL is CoreML's intermediate language; https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
lists its operators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.errors import EngineError

__all__ = ["FLOATS", "INTEGERS", "Call", "Operator", "Result", "State", "as_tensor", "stored", "wrapped"]

FLOATS: Final = frozenset({"fp16", "fp32"})
"""MIL's names of the floating-point types that we run."""

INTEGERS: Final[dict[str, type[np.integer[Any]]]] = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
}
"""MIL's integers. All are held as int32 here, inside the range of their own type."""

State = dict[str, Tensor]
"""State buffers by name; `coreml_update_state` replaces the tensors in it."""

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One operation with its inputs evaluated.

    Attributes:
        operator: MIL's name of the operator, such as `conv`.
        name: the operation's own name in the file.
        graph: which graph it belongs to, for messages.
        inputs: tensors; numbers, strings and numpy arrays where the file holds a constant; tuples of
            tensors where an operator takes a list. Inputs that the file leaves out are not in it.
        dtype: MIL's name of the first output's type.
        state: the program's state buffers.
    """

    operator: str
    name: str
    graph: str
    inputs: Mapping[str, Any]
    dtype: str
    state: State

    def tensor(self, name: str) -> Tensor:
        """Return the input `name` as a tensor; half precision arrives as float32."""
        return as_tensor(self.inputs[name])

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """Return an input that is a list of tensors."""
        return tuple(as_tensor(value) for value in self.inputs[name])

    def has(self, name: str) -> bool:
        """Return whether the file gives the input `name`."""
        return name in self.inputs

    def integers(self, name: str) -> list[int]:
        """Return a list of integers, constant or computed."""
        return [int(value) for value in np.asarray(self._plain(name)).reshape(-1)]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return one integer; `default` where the file leaves it out."""
        return default if default is not None and name not in self.inputs else int(self._plain(name))

    def number(self, name: str, default: float | None = None) -> float:
        """Return one number; `default` where the file leaves it out."""
        return default if default is not None and name not in self.inputs else float(self._plain(name))

    def flags(self, name: str, count: int) -> list[bool]:
        """Return `count` booleans; all are False where the file leaves them out."""
        if name not in self.inputs:
            return [False] * count
        return [bool(value) for value in np.asarray(self._plain(name)).reshape(-1)]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return one boolean."""
        return bool(self._plain(name)) if name in self.inputs else default

    def text(self, name: str, default: str = "") -> str:
        """Return one string."""
        return str(self.inputs.get(name, default))

    def unsupported(self, what: str) -> EngineError:
        """Return the error for a form of an operator that is not implemented."""
        return EngineError(
            f"CoreML graph {self.graph}",
            expected=f"a form of the operator `{self.operator}` that the MIL interpreter knows",
            found=f"{what}, in the operation `{self.name}`",
            remedy="Implement it in export/mil, or check this graph on a device with the generated XCTest.",
        )

    def _plain(self, name: str) -> Any:
        value = self.inputs[name]
        return value.numpy() if isinstance(value, Tensor) else value


Operator = Callable[[Call], Result]


def as_tensor(value: object) -> Tensor:
    """Return a constant or a tensor as a tensor: float32, int32 or bool."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(_whole(value))
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def stored(tensor: Tensor, dtype: str, *, exact: bool) -> Tensor:
    """Return `tensor` as a value of MIL's type `dtype`.

    Args:
        tensor: what an operator computed, in float32, int32 or bool.
        dtype: MIL's name of the type.
        exact: leave floats in float32, also where the file says half precision.
    """
    if dtype == "fp16":
        return tensor.float() if exact else tensor.to(torch.float16)
    if dtype == "fp32":
        return tensor.float()
    if dtype == "bool":
        return tensor.to(torch.bool)
    return wrapped(tensor, dtype)


def wrapped(tensor: Tensor, dtype: str) -> Tensor:
    """Return `tensor` truncated to integers and wrapped into the range of `dtype`, as int32."""
    values = tensor.to(torch.int64).numpy().astype(INTEGERS[dtype])
    return torch.from_numpy(values.astype(np.int32))


def _whole(value: object) -> NDArray[Any]:
    array = np.array(value)  # a copy: what comes from a file is read-only
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "iu":
        return array.astype(np.int32)
    return array
