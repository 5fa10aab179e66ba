"""What every ExecuTorch backend shares: capture, partition, serialise, count what was delegated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.delegation import Delegation
from pocketlens.export.folding import fold_batch_norm

__all__ = ["captured", "check_precision", "one_row", "write_program"]


def captured(module: nn.Module, example: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Return `module` traced at the shapes of `example`, batch norms folded away."""
    return torch.export.export(fold_batch_norm(torch.export.export(module, example).module()), example)


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
