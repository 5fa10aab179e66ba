"""A module as the graph that is exported: traced, batch norms folded away.

Training with simulated quantization and the export go through this one capture, so their graphs have the same nodes
under the same names.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pocketlens.distill.compression.folding import FoldedNorm, fold_batch_norm, folded_norms

__all__ = ["Captured", "capture"]


class Captured(NamedTuple):
    """A traced module.

    Attributes:
        program: the graph.
        folded: where the weights of folded convolutions come from, by the beginning of their names.
    """

    program: ExportedProgram
    folded: dict[str, FoldedNorm]


def capture(module: nn.Module, example: tuple[Tensor, ...], *, free_batch: bool = False) -> Captured:
    """Return `module`, in eval mode, traced at the shapes of `example`.

    Args:
        module: what is traced.
        example: its arguments.
        free_batch: the first axis of all arguments may have any size; the example's must be at least 2.
    """
    free: Any = tuple({0: Dim.DYNAMIC} for _ in example) if free_batch else None
    traced = torch.export.export(module, example, dynamic_shapes=free).module()
    folded = folded_norms(traced)
    return Captured(torch.export.export(fold_batch_norm(traced), example, dynamic_shapes=free), folded)
