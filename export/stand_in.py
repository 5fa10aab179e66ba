"""The eager student in place of graphs that a variant lacks: a caption needs all of its graphs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.export.graphs import Graph
from pocketlens.export.parity import GraphRunner
from pocketlens.export.reference import Feed

__all__ = ["Patched", "StandIn", "eager_answers"]

StandIn = Callable[[Role, Feed], dict[str, NDArray[Any]]]
"""Answers in place of a graph that a variant lacks; see `eager_answers`."""


def eager_answers(graphs: Mapping[Role, Graph]) -> StandIn:
    """Return a stand-in that runs the eager student's own modules.

    A cache may come with layers and keys/values as one axis, as CoreML has it (ADR 0003).
    """

    def answer(role: Role, inputs: Feed) -> dict[str, NDArray[Any]]:
        graph = graphs[role]
        with torch.no_grad():
            result = graph.module(*(_input(inputs[spec.name], spec) for spec in graph.inputs))
        results = result if isinstance(result, tuple) else (result,)
        return {spec.name: value.numpy() for spec, value in zip(graph.outputs, results, strict=True)}

    return answer


def _input(array: NDArray[Any], spec: TensorSpec) -> torch.Tensor:
    array = array if array.ndim == len(spec.shape) else array.reshape(-1, *spec.shape[1:])
    return torch.from_numpy(array.copy())


class Patched:
    """A runner with the eager student in the roles that it lacks.

    Args:
        runner: what runs the graphs that are there.
        roles: those that it runs.
        stand_in: answers for the others.
    """

    def __init__(self, runner: GraphRunner, roles: frozenset[Role], stand_in: StandIn) -> None:
        self._runner = runner
        self._roles = roles
        self._stand_in = stand_in

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph of `role`, or ask the stand-in."""
        return self._runner.run(role, inputs) if role in self._roles else self._stand_in(role, dict(inputs))
