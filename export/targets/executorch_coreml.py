"""ExecuTorch programs for the CoreML backend: an app that ships one runtime for Android and iOS.

Lowered on any system, run on Apple's only: the program holds an ML program that CoreML compiles when
it is loaded. What CoreML cannot express stays on ExecuTorch's portable kernels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets.executorch_program import captured, check_precision, one_row, write_program

__all__ = ["RECIPES", "ExecutorchCoremlRecipe", "ExecutorchCoremlTarget"]


@dataclass(frozen=True)
class ExecutorchCoremlRecipe:
    """How one precision is made.

    Attributes:
        arithmetic: of the delegated parts. The neural engine has float16 only.
        deployment: the first system that runs it.
    """

    arithmetic: Literal["FLOAT16", "FLOAT32"] = "FLOAT16"
    deployment: Literal["iOS17", "iOS18"] = "iOS17"


RECIPES: Final[dict[str, ExecutorchCoremlRecipe]] = {
    "fp16": ExecutorchCoremlRecipe(),
    "fp32": ExecutorchCoremlRecipe(arithmetic="FLOAT32"),
}
"""By precision, as it stands in the name of a variant."""


@dataclass(frozen=True)
class ExecutorchCoremlTarget:
    """Writes `.pte` files of batch 1 with one method, `forward`."""

    engine: ClassVar[Literal["executorch_coreml"]] = "executorch_coreml"
    suffix: ClassVar[str] = ".pte"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, Delegation]:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`; nothing is calibrated.

        Returns:
            What CoreML took over, by precision.

        Raises:
            ExportError: an unknown precision, or the lowering left nothing to the backend.
        """
        for precision in paths:
            check_precision("ExecuTorch CoreML", precision, tuple(RECIPES))
        taken: dict[str, Delegation] = {}
        with quiet(), torch.no_grad():
            import coremltools as ct
            from executorch.backends.apple.coreml.compiler import CoreMLBackend
            from executorch.backends.apple.coreml.partition import CoreMLPartitioner

            for precision, path in paths.items():
                recipe = RECIPES[precision]
                specs = CoreMLBackend.generate_compile_specs(
                    compute_precision=getattr(ct.precision, recipe.arithmetic),
                    minimum_deployment_target=getattr(ct.target, recipe.deployment),
                )
                taken[precision] = write_program(
                    captured(graph.module, graph.example_row),
                    graph.role,
                    path,
                    backend="CoreML",
                    partitioner=CoreMLPartitioner(compile_specs=specs),
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
        return {name: version(name) for name in ("torch", "executorch", "coremltools")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return (
            "Lowered on a system without CoreML and run nowhere yet: it needs an Apple device (iOS 17, macOS 14) "
            "and an ExecuTorch runtime that is built with the CoreML backend.",
        )
