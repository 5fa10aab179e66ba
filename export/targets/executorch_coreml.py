"""ExecuTorch programs for the CoreML backend: an app that ships one runtime for Android and iOS.

Lowered on any system, run on Apple's only: the program holds an ML program that CoreML compiles when
it is loaded. What CoreML cannot express stays on ExecuTorch's portable kernels. Caption caches have six axes,
and CoreML's arrays at most five: the partitioner takes them all the same, and the conversion fails. So two axes
are one, as in the target `coreml`. Nor has CoreML arrays of 8 bits: pixels become floats before its part begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch.export import ExportedProgram

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed
from pocketlens.export.targets import coreml_forms
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


_CASTS: Final = ("dim_order_ops._to_dim_order_copy.default", "aten._to_copy.default")
"""What makes floats of pixels, before and after ExecuTorch renames its operators."""


class ExecutorchCoremlTarget(ProgramTarget):
    """Programs for CoreML; nothing is calibrated."""

    engine: ClassVar[Literal["executorch_coreml"]] = "executorch_coreml"
    backend = "CoreML"
    precisions = tuple(RECIPES)
    packages = ("torch", "executorch", "coremltools")

    def partitioner(self, graph: Graph, precision: str) -> Any:
        """Return CoreML's partitioner."""
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        recipe = RECIPES[precision]
        specs = CoreMLBackend.generate_compile_specs(
            compute_precision=getattr(ct.precision, recipe.arithmetic),
            minimum_deployment_target=getattr(ct.target, recipe.deployment),
        )
        casts = _CASTS if any(spec.dtype == "uint8" for spec in graph.inputs) else ()
        return CoreMLPartitioner(compile_specs=specs, skip_ops_for_coreml_delegation=list(casts))

    def program(self, graph: Graph, precision: str, feeds: Sequence[Feed]) -> ExportedProgram:
        """Return what is lowered, its caches with five axes."""
        if not _has_six_axes(graph):
            return super().program(graph, precision, feeds)
        form = coreml_forms.captured(graph)
        return torch.export.export(form.module, form.example)

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return tuple(map(_five_axes, super().inputs(graph)))

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return tuple(map(_five_axes, super().outputs(graph)))

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        lowered = (
            "Lowered on a system without CoreML and run nowhere yet: it needs an Apple device (iOS 17, macOS 14) "
            "and an ExecuTorch runtime that is built with the CoreML backend."
        )
        merged = "The cache's layer axis and key/value axis are one axis: CoreML stops at five."
        return (lowered, merged) if _has_six_axes(graph) else (lowered,)


def _has_six_axes(graph: Graph) -> bool:
    return any(len(spec.shape) > coreml_forms.MAX_RANK for spec in (*graph.inputs, *graph.outputs))


def _five_axes(spec: TensorSpec) -> TensorSpec:
    shape = spec.shape
    if len(shape) > coreml_forms.MAX_RANK:
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)
