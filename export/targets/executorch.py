"""ExecuTorch programs for the XNNPACK backend: what Android, iOS and Linux boards run on the CPU.

| precision | weights | arithmetic |
|---|---|---|
| `fp32` | float32 | float32 |
| `int8` | int8 by output channel | int8, ranges by calibration (PT2E) |
| `8da8w` | int8 by output channel, tables too | int8 in linear layers, ranges found in each call |
| `8da4w` | 4 bits by groups of 32 inputs, tables 8 bits | int8 in linear layers, ranges found in each call |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch.export import ExportedProgram

from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed
from pocketlens.export.targets.executorch_dynamic import quantized_module
from pocketlens.export.targets.executorch_program import ProgramTarget, captured
from pocketlens.export.targets.executorch_static import quantize_pt2e

__all__ = ["RECIPES", "ExecutorchRecipe", "ExecutorchTarget"]


@dataclass(frozen=True)
class ExecutorchRecipe:
    """How one precision is made.

    Attributes:
        weights: how they are stored.
        activations: `float`; `static` has ranges from calibration, `dynamic` finds them in each call.
    """

    weights: Literal["float32", "int8", "int4"] = "float32"
    activations: Literal["float", "static", "dynamic"] = "float"


RECIPES: Final[dict[str, ExecutorchRecipe]] = {
    "fp32": ExecutorchRecipe(),
    "int8": ExecutorchRecipe(weights="int8", activations="static"),
    "8da8w": ExecutorchRecipe(weights="int8", activations="dynamic"),
    "8da4w": ExecutorchRecipe(weights="int4", activations="dynamic"),
}
"""By precision, as it stands in the name of a variant."""


class ExecutorchTarget(ProgramTarget):
    """Programs for XNNPACK; `int8` is calibrated."""

    engine: ClassVar[Literal["executorch"]] = "executorch"
    backend = "XNNPACK"
    precisions = tuple(RECIPES)
    packages = ("torch", "executorch", "torchao")

    def partitioner(self, graph: Graph, precision: str) -> Any:
        """Return XNNPACK's partitioner."""
        # Imported here: it costs seconds, and warns.
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return XnnpackPartitioner()

    def program(self, graph: Graph, precision: str, feeds: Sequence[Feed]) -> ExportedProgram:
        """Return what is lowered, quantized as the precision's recipe says."""
        recipe, example = RECIPES[precision], graph.example_row
        if recipe.activations == "dynamic":
            return captured(quantized_module(graph, "int4" if recipe.weights == "int4" else "int8"), example)
        program = super().program(graph, precision, feeds)
        if recipe.activations == "static":
            program = torch.export.export(quantize_pt2e(program.module(), graph, feeds), example)
        return program

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return ()
