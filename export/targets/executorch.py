"""ExecuTorch programs for the XNNPACK backend: what Android, iOS and Linux boards run on the CPU.

| precision | weights | arithmetic |
|---|---|---|
| `fp32` | float32 | float32 |
| `int8` | int8 by output channel | int8, ranges by calibration (PT2E) |
| `8da8w` | int8 by output channel, tables too | int8 in linear layers, ranges found in each call |
| `8da4w` | 4 bits by groups of 32 inputs, tables 8 bits | int8 in linear layers, ranges found in each call |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch
from torch.export import ExportedProgram

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets.executorch_dynamic import quantized_module
from pocketlens.export.targets.executorch_program import captured, check_precision, one_row, write_program
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


@dataclass(frozen=True)
class ExecutorchTarget:
    """Writes `.pte` files of batch 1 with one method, `forward`."""

    engine: ClassVar[Literal["executorch"]] = "executorch"
    suffix: ClassVar[str] = ".pte"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, Delegation]:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; their folders exist.
            feeds: calibration inputs of batch 1; used for `int8`.

        Returns:
            What XNNPACK took over, by precision.

        Raises:
            ExportError: an unknown precision, or the lowering left nothing to the backend.
        """
        for precision in paths:
            check_precision("ExecuTorch", precision, tuple(RECIPES))
        taken: dict[str, Delegation] = {}
        with quiet(), torch.no_grad():
            # Imported here: it costs seconds, and warns.
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

            for precision, path in paths.items():
                program = _program(graph, RECIPES[precision], feeds)
                taken[precision] = write_program(
                    program, graph.role, path, backend="XNNPACK", partitioner=XnnpackPartitioner()
                )
        return taken

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return one_row(graph.inputs)

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return one_row(graph.outputs)

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "executorch", "torchao")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return ()


def _program(graph: Graph, recipe: ExecutorchRecipe, feeds: Sequence[Feed]) -> ExportedProgram:
    example = graph.example_row
    if recipe.activations == "dynamic":
        return captured(quantized_module(graph, "int4" if recipe.weights == "int4" else "int8"), example)
    program = captured(graph.module, example)
    if recipe.activations == "static":
        program = torch.export.export(quantize_pt2e(program.module(), graph, feeds), example)
    return program
