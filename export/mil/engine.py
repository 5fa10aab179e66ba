"""A bundle's CoreML graphs behind the interface of the runtime's engines, so that parity is measured alike."""

from collections.abc import Mapping
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.export.mil.package import open_package
from pocketlens.export.mil.program import MilProgram
from pocketlens.export.mil.values import as_tensor
from pocketlens.runtime.engines.engine import bundle_graph

__all__ = ["PARITY_NOTE", "MilEngine"]

PARITY_NOTE: Final = (
    "Parity was measured by running the saved package in torch. It proves the weights and the structure that the file "
    "holds, with results rounded to the types that it declares; how an Apple device rounds inside its operators "
    "only that device can show."
)
"""Belongs into the record of every graph whose parity this engine measured."""


class MilEngine:
    """Interprets CoreML graphs. Slow; for checking, not for use.

    `run` is that of `pocketlens.runtime.engines.Engine`. Graphs have batch 1: rows are run one after
    the other. A stateful decode step is given a cache and returns one, like any other: it is written
    into the state before the step and read from it afterwards.

    Args:
        bundle: the bundle that the records belong to.
        graphs: one record per role that will be run.
        exact: see `MilProgram.run`.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[Role, GraphRecord], *, exact: bool = False) -> None:
        self._bundle = bundle
        self._graphs = dict(graphs)
        self._exact = exact
        self._programs: dict[Role, MilProgram] = {}
        self._lock = Lock()

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph of `role` and return its outputs by the record's names.

        Raises:
            BundleIncomplete: no graph was chosen for this role.
            EngineError: the package cannot be read, holds unknown operators, or does not fit `inputs`.
        """
        record, _ = bundle_graph(self._bundle, self._graphs, role)
        program = self._program(role)
        rows = len(next(iter(inputs.values())))
        found = [self._row(program, record, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(rows)]
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

    def _program(self, role: Role) -> MilProgram:
        with self._lock:
            if role not in self._programs:
                _, path = bundle_graph(self._bundle, self._graphs, role)
                self._programs[role] = open_package(path)
            return self._programs[role]

    def _row(
        self, program: MilProgram, record: GraphRecord, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        try:
            # By position (ADR 0003); a cache may come with layers and keys/values as two axes.
            feeds = {
                port.name: inputs[spec.name].reshape(-1, *spec.shape[1:])
                for port, spec in zip(program.inputs, record.inputs, strict=True)
            }
            state = program.new_state()
            for port in program.states:
                state[port.name] = as_tensor(inputs[port.name].reshape(port.shape)).to(state[port.name].dtype)
        except (KeyError, ValueError) as error:
            raise EngineError(
                f"CoreML graph {program.name}",
                expected=", ".join(f"{spec.name} {spec.shape}" for spec in record.inputs),
                found=", ".join(f"{name} {array.shape}" for name, array in inputs.items()),
                remedy="Feed what the graph's record says.",
            ) from error
        results = program.run(feeds, state=state, exact=self._exact)
        named = {s.name: results[p.name] for s, p in zip(record.outputs, program.outputs, strict=True)}
        return {**named, **{port.name: state[port.name].float().numpy() for port in program.states}}
