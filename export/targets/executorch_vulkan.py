"""ExecuTorch programs for the Vulkan backend: the GPU of an Android phone.

Lowered on any system. Running one needs a Vulkan device and a runtime that is built with the backend,
which ExecuTorch's wheel for Linux is not.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from pocketlens.export.graphs import Graph
from pocketlens.export.targets.executorch_program import ProgramTarget

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


class ExecutorchVulkanTarget(ProgramTarget):
    """Programs for Vulkan; nothing is calibrated."""

    engine: ClassVar[Literal["executorch_vulkan"]] = "executorch_vulkan"
    backend = "Vulkan"
    precisions = tuple(RECIPES)

    def partitioner(self, graph: Graph, precision: str) -> Any:
        """Return Vulkan's partitioner."""
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({"force_fp16": RECIPES[precision].half})

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return (
            "Lowered on a system without a Vulkan device and run nowhere yet: it needs a GPU with Vulkan and an "
            "ExecuTorch runtime that is built with the Vulkan backend.",
        )
