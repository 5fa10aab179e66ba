"""ExecuTorch programs for the Vulkan backend: the GPU of an Android phone.

Lowered on any system. Running one needs a Vulkan device and a runtime that is built with the backend,
which ExecuTorch's wheel for Linux is not.
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

__all__ = ["RECIPES", "ExecutorchVulkanRecipe", "ExecutorchVulkanTarget"]


@dataclass(frozen=True)
class ExecutorchVulkanRecipe:
    """How one precision is made.

    Attributes:
        half: keep tensors as float16 on the GPU; what goes in and comes out stays float32.
    """

    half: bool = False


RECIPES: Final[dict[str, ExecutorchVulkanRecipe]] = {
    "fp32": ExecutorchVulkanRecipe(),
    "fp16": ExecutorchVulkanRecipe(half=True),
}
"""By precision, as it stands in the name of a variant."""


@dataclass(frozen=True)
class ExecutorchVulkanTarget:
    """Writes `.pte` files of batch 1 with one method, `forward`."""

    engine: ClassVar[Literal["executorch_vulkan"]] = "executorch_vulkan"
    suffix: ClassVar[str] = ".pte"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, Delegation]:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`; nothing is calibrated.

        Returns:
            What Vulkan took over, by precision.

        Raises:
            ExportError: an unknown precision, or the lowering left nothing to the backend.
        """
        for precision in paths:
            check_precision("ExecuTorch Vulkan", precision, tuple(RECIPES))
        taken: dict[str, Delegation] = {}
        with quiet(), torch.no_grad():
            from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

            for precision, path in paths.items():
                taken[precision] = write_program(
                    captured(graph.module, graph.example_row),
                    graph.role,
                    path,
                    backend="Vulkan",
                    partitioner=VulkanPartitioner({"force_fp16": RECIPES[precision].half}),
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
        return {name: version(name) for name in ("torch", "executorch")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return (
            "Lowered on a system without a Vulkan device and run nowhere yet: it needs a GPU with Vulkan and an "
            "ExecuTorch runtime that is built with the Vulkan backend.",
        )
