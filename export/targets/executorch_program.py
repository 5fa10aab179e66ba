"""What every ExecuTorch backend shares: capture, partition, serialise, count what was delegated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.export import ExportedProgram

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.distill.compression.capture import capture
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed

__all__ = ["ProgramTarget", "captured", "check_precision", "one_row", "write_program"]


class ProgramTarget(ABC):
    """Writes `.pte` files of batch 1 with one method, `forward`. A backend says what is its own.

    Attributes:
        backend: the delegate's name, in errors and in what is returned.
        precisions: what it can be asked for.
        packages: whose versions go into the graph's record.
    """

    suffix: ClassVar[str] = ".pte"
    backend: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]] = ("torch", "executorch")

    @abstractmethod
    def partitioner(self, graph: Graph, precision: str) -> Any:
        """Return the ExecuTorch partitioner for `graph` in one precision."""

    def program(self, graph: Graph, precision: str, feeds: Sequence[Feed]) -> ExportedProgram:
        """Return what is lowered; calibrated by `feeds` where the precision asks for it."""
        return captured(graph.module, graph.example_row)

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, Delegation]:
        """Write `graph` once for each precision in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; their folders exist.
            feeds: calibration inputs of batch 1.

        Returns:
            What the backend took over, by precision.

        Raises:
            ExportError: an unknown precision, or the lowering left nothing to the backend.
        """
        for precision in paths:
            check_precision(f"ExecuTorch {self.backend}", precision, self.precisions)
        with quiet(), torch.no_grad():
            return {
                precision: write_program(
                    self.program(graph, precision, feeds),
                    graph.role,
                    path,
                    backend=self.backend,
                    partitioner=self.partitioner(graph, precision),
                )
                for precision, path in paths.items()
            }

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return one_row(graph.inputs)

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return one_row(graph.outputs)

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in self.packages}


def captured(module: nn.Module, example: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Return `module` traced at the shapes of `example`, batch norms folded away."""
    return capture(module, example).program


def write_program(program: ExportedProgram, role: Role, path: Path, *, backend: str, partitioner: Any) -> Delegation:
    """Lower `program` with `partitioner`, write it to `path` and return how much the backend took.

    Args:
        program: of batch 1.
        role: named in the error.
        path: the `.pte` file.
        backend: named in the error and in what is returned.
        partitioner: an ExecuTorch partitioner.

    Raises:
        ExportError: the backend took nothing.
    """
    # Imported here: executorch.exir costs seconds.
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program,
        partitioner=[partitioner],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    info = get_delegation_info(edge.exported_program().graph_module)
    if not info.num_delegated_nodes:
        raise ExportError(
            f"ExecuTorch program {role}",
            expected=f"operators that {backend} takes over",
            found="none",
            remedy="Check the installed executorch against constraints.txt.",
        )
    lowered = edge.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    with path.open("wb") as stream:
        lowered.write_to_file(stream)
    # `getitem` picks one result of an operator that has several: no work, but the library counts it.
    picks = info.delegation_by_operator.get("getitem")
    taken = info.num_delegated_nodes - (picks.delegated if picks else 0)
    left = info.num_non_delegated_nodes - (picks.non_delegated if picks else 0)
    return Delegation(backend, delegated=taken, left=left, parts=info.num_delegated_subgraphs)


def one_row(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return `specs` with the free batch axis bound to 1: a program's memory is planned for one row."""
    return tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(1, *spec.shape[1:])) for spec in specs)


def check_precision(target: str, precision: str, known: Sequence[str]) -> None:
    """Check that `precision` is one of `known`.

    Raises:
        ExportError: it is not.
    """
    if precision not in known:
        raise ExportError(
            f"{target} precision {precision!r}",
            expected=f"one of {', '.join(known)}",
            found=f"{precision!r}",
            remedy="Correct the variant in the recipe.",
        )
