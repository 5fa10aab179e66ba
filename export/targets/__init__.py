"""One file per target; each brings its own heavy packages, so nothing is imported before it is asked for."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

if TYPE_CHECKING:
    from pocketlens.core.bundle import TensorSpec
    from pocketlens.export.delegation import Delegation
    from pocketlens.export.graphs import Graph
    from pocketlens.export.reference import Feed

__all__ = ["TARGETS", "Runner", "Target", "open_target"]

Runner = Literal["onnxruntime", "executorch", "coreml", "executorch_coreml", "executorch_vulkan", "tensorrt", "litert"]
"""What runs a target's files. The first two run on the exporting machine, see `runtime.engines.ENGINES`; CoreML's are
interpreted there (`pocketlens.export.mil`)."""

_CLASSES: Final = {
    "onnx": "OnnxTarget",
    "executorch": "ExecutorchTarget",
    "executorch_coreml": "ExecutorchCoremlTarget",
    "executorch_vulkan": "ExecutorchVulkanTarget",
    "coreml": "CoremlTarget",
    "coremlstate": "CoremlStateTarget",
    "litert": "LitertTarget",
    "tensorrt": "TensorrtTarget",
}

TARGETS: Final[tuple[str, ...]] = tuple(_CLASSES)


class Target(Protocol):
    """Turns graphs into files of one format."""

    @property
    def engine(self) -> Runner:
        """The engine that runs the files."""
        ...

    @property
    def suffix(self) -> str:
        """How the files' names end."""
        ...

    def export(
        self, graph: "Graph", paths: Mapping[str, Path], feeds: "Sequence[Feed]"
    ) -> "Mapping[str, Delegation] | None":
        """Write `graph` once for each precision in `paths`; `feeds` calibrate quantization.

        Returns:
            By precision what a backend took over; `None` where the target has no such division.
        """
        ...

    def inputs(self, graph: "Graph") -> "tuple[TensorSpec, ...]":
        """Return what the file takes."""
        ...

    def outputs(self, graph: "Graph") -> "tuple[TensorSpec, ...]":
        """Return what the file gives, in this order."""
        ...

    def tools(self) -> dict[str, str]:
        """Return the versions of the packages that write the file."""
        ...

    def notes(self, graph: "Graph") -> tuple[str, ...]:
        """Return sentences that belong into the graph's record."""
        ...


def open_target(name: str) -> Target:
    """Return the target called `name`, one of `TARGETS`, with its defaults."""
    module = import_module(f"{__name__}.{name}")
    return cast("Target", getattr(module, _CLASSES[name])())
