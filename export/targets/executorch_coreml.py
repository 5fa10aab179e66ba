"""ExecuTorch programs for the CoreML backend: an app that ships one runtime for Android and iOS.

Lowered on any system, run on Apple's only: the program holds an ML program that CoreML compiles when
it is loaded. What CoreML cannot express stays on ExecuTorch's portable kernels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from pocketlens.export.graphs import Graph
from pocketlens.export.targets.executorch_program import ProgramTarget

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


class ExecutorchCoremlTarget(ProgramTarget):
    """Programs for CoreML; nothing is calibrated."""

    engine: ClassVar[Literal["executorch_coreml"]] = "executorch_coreml"
    backend = "CoreML"
    precisions = tuple(RECIPES)
    packages = ("torch", "executorch", "coremltools")

    def partitioner(self, precision: str) -> Any:
        """Return CoreML's partitioner."""
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        recipe = RECIPES[precision]
        specs = CoreMLBackend.generate_compile_specs(
            compute_precision=getattr(ct.precision, recipe.arithmetic),
            minimum_deployment_target=getattr(ct.target, recipe.deployment),
        )
        return CoreMLPartitioner(compile_specs=specs)

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return (
            "Lowered on a system without CoreML and run nowhere yet: it needs an Apple device (iOS 17, macOS 14) "
            "and an ExecuTorch runtime that is built with the CoreML backend.",
        )
