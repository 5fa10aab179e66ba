"""A MIL function as a list of steps, and how they are run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.errors import EngineError, PocketlensError
from pocketlens.export.mil.table import OPERATORS
from pocketlens.export.mil.values import INTEGERS, Call, State, as_tensor, stored
from pocketlens.export.mil.weights import CONSTEXPR, whole_weight

__all__ = ["MilProgram", "Port", "Step", "compile_steps"]

_UNNAMED_SHOWN: Final = 8


@dataclass(frozen=True)
class Port:
    """An input, an output or a state buffer of a program.

    Attributes:
        name: as the file says.
        shape: what the program computes with.
        dtype: MIL's name of the type.
        picture: `RGB` or `BGR` for an input that an app feeds a picture into; empty for arrays. A
            picture is uint8 `(1, H, W, 3)` in RGB here, whatever the shape says.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    picture: Literal["", "RGB", "BGR"] = ""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        operator: MIL's name of the operator.
        name: the operation's own name.
        constants: inputs that the file holds.
        variables: inputs that earlier steps compute; a tuple where the operator takes a list.
        outputs: name and MIL type of each result.
    """

    operator: str
    name: str
    constants: Mapping[str, Any]
    variables: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MilProgram:
    """A saved package, ready to run in torch.

    Attributes:
        name: which graph, for messages.
        inputs: in the file's order, without state.
        outputs: in the file's order.
        states: buffers that live from one call to the next.
        values: constants by name: weights, made whole.
        steps: in the order in which they run.
        specification: CoreML's version of the format: 8 needs iOS 17 or macOS 14, 9 needs iOS 18 or macOS 15.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...]
    values: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    specification: int

    def new_state(self) -> State:
        """Return state buffers as a device makes them: all zeros."""
        types = {"fp16": torch.float16, "fp32": torch.float32}
        return {port.name: torch.zeros(port.shape, dtype=types[port.dtype]) for port in self.states}

    @torch.no_grad()
    def run(
        self, feeds: Mapping[str, NDArray[Any]], *, state: State | None = None, exact: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Every operator computes in float32. Its result is then rounded to the type that the file
        declares for it, half precision mostly: an overflow of half precision shows. Sums inside an
        operator are not rounded; a device may round them.

        Args:
            feeds: one array for each input, of its shape.
            state: buffers from `new_state`, changed in place; needed by a program that has states.
            exact: round nothing to half precision: what is left over against the eager model then comes
                from the weights and the structure alone.

        Raises:
            EngineError: an input is missing or does not fit, or an operator fails.
        """
        if self.states and state is None:
            raise self._failed("state buffers: it is stateful", "none")
        kept = {} if state is None else state
        values: dict[str, Tensor] = dict(self.values)
        for port in self.inputs:
            values[port.name] = self._fed(port, feeds)
        for step in self.steps:
            self._run_step(step, values, kept, exact=exact)
        return {port.name: values[port.name].float().numpy() for port in self.outputs}

    def _run_step(self, step: Step, values: dict[str, Tensor], state: State, *, exact: bool) -> None:
        inputs = dict(step.constants)
        for name, source in step.variables.items():
            inputs[name] = values[source] if isinstance(source, str) else tuple(values[part] for part in source)
        call = Call(step.operator, step.name, self.name, inputs, step.outputs[0][1], state)
        try:
            result = OPERATORS[step.operator](call)
        except PocketlensError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise self._failed(
                f"inputs that the operator `{step.operator}` accepts",
                f"{type(error).__name__} in `{step.name}`: {str(error)[:200]}",
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        for (name, dtype), tensor in zip(step.outputs, results, strict=True):
            values[name] = stored(tensor, dtype, exact=exact)

    def _fed(self, port: Port, feeds: Mapping[str, NDArray[Any]]) -> Tensor:
        if port.name not in feeds:
            raise self._failed(f"an array for the input `{port.name}`", ", ".join(sorted(feeds)) or "none")
        array = feeds[port.name]
        if port.picture:
            array = np.moveaxis(array, -1, 1)  # (1, 3, H, W)
            array = array[:, ::-1] if port.picture == "BGR" else array
        if array.shape != port.shape:
            raise self._failed(f"`{port.name}` of shape {port.shape}", f"shape {array.shape}")
        return stored(as_tensor(np.ascontiguousarray(array)), port.dtype, exact=True)

    def _failed(self, expected: str, found: str) -> EngineError:
        return EngineError(
            f"CoreML graph {self.name}",
            expected=expected,
            found=found,
            remedy="Feed what the graph's record says, or export the bundle again.",
        )


def compile_steps(name: str, operations: Sequence[Any]) -> tuple[dict[str, Tensor], tuple[Step, ...]]:
    """Return constants by name, and the steps, of coremltools' `operations`.

    Raises:
        EngineError: operators that are not in the table, or blocks inside of one; all are named.
    """
    unknown = [
        operation
        for operation in operations
        if operation.op_type not in OPERATORS and operation.op_type not in {"const", *CONSTEXPR}
    ]
    if unknown:
        listed = [f"`{o.op_type}` ({o.name})" for o in unknown[:_UNNAMED_SHOWN]]
        more = len(unknown) - len(listed)
        raise EngineError(
            f"CoreML graph {name}",
            expected="operators that the MIL interpreter knows",
            found=", ".join(listed) + (f" and {more} more" if more else ""),
            remedy="Add them to a table of export/mil, or check this graph on a device with the generated XCTest.",
        )
    values: dict[str, Tensor] = {}
    steps = []
    for operation in operations:
        if operation.op_type in CONSTEXPR:
            values[operation.outputs[0].name] = whole_weight(operation)
        elif operation.op_type != "const":
            steps.append(_step(operation))
            values |= _listed_constants(operation)
    return values, tuple(steps)


def _listed_constants(operation: Any) -> dict[str, Tensor]:
    """Return constants that stand in a list of inputs beside computed ones: a class token before patches."""
    parts = [part for source in operation.inputs.values() if isinstance(source, list | tuple) for part in source]
    return {part.name: as_tensor(part.val) for part in parts if part.op is not None and part.op.op_type == "const"}


def _step(operation: Any) -> Step:
    constants: dict[str, Any] = {}
    variables: dict[str, str | tuple[str, ...]] = {}
    for name, source in operation.inputs.items():
        if source is None:
            continue
        if isinstance(source, list | tuple):
            variables[name] = tuple(part.name for part in source)
        elif source.op is not None and source.op.op_type == "const":
            constants[name] = _constant(source.val)
        elif operation.op_type == "read_state" or (operation.op_type == "coreml_update_state" and name == "state"):
            constants[name] = source.name
        else:
            variables[name] = source.name
    outputs = tuple((output.name, dtype_name(output)) for output in operation.outputs)
    return Step(operation.op_type, operation.name, constants, variables, outputs)


def _constant(value: object) -> object:
    """Return arrays as tensors, converted once; numbers and strings as they are."""
    array = np.asarray(value)
    return as_tensor(value) if array.ndim and array.dtype.kind in "fiub" else value


def dtype_name(variable: Any) -> str:
    """Return MIL's name of a variable's type, as in `INTEGERS`, or `fp16`, `fp32`, `bool`."""
    from coremltools.converters.mil.mil import types

    name = str(types.builtin_to_string(variable.dtype))
    return name if name in {*INTEGERS, "fp16", "fp32", "bool"} else f"unsupported {name}"
