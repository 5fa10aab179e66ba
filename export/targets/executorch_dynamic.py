"""Dynamic int8 for XNNPACK through torchao: weights of 8 or 4 bits, activations quantized in each call.

Linear layers get activations of 8 bits with a range for each row ("8da"); tables of token and position
vectors get 8 bits a row. Convolutions stay in float: XNNPACK has no dynamic kernel for them here.
"""

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pocketlens.export.graphs import Graph

__all__ = ["GROUP", "quantized_module"]

GROUP = 32
"""Inputs of a linear layer that share a 4-bit scale; a layer whose inputs are no multiple of it keeps 8 bits."""


_INT4: torch.dtype = torch.__dict__["int4"]  # torch has it, its type stubs do not


class _LongIndices(nn.Module):
    """A table that is read with int64 ids: ExecuTorch's kernel for 8-bit tables refuses int32."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.table(ids.to(torch.int64))
        return rows


def quantized_module(graph: Graph, weights: Literal["int8", "int4"]) -> nn.Module:
    """Return a copy of `graph`'s module with quantized tables and linear layers.

    The layer that gives the logits stays in float, as in every precision of ours.
    """
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )

    module = copy.deepcopy(graph.module)
    quantize_(module, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)), _is_table)
    _read_tables_with_long(module)
    eight = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    four = Int8DynamicActivationIntxWeightConfig(weight_dtype=_INT4, weight_granularity=PerGroup(GROUP))
    if weights == "int4":
        quantize_(module, four, lambda layer, name: _is_linear(layer, name) and _fits(layer))
        quantize_(module, eight, lambda layer, name: _is_linear(layer, name) and not _fits(layer))
    else:
        quantize_(module, eight, _is_linear)
    return module


def _is_table(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Embedding)


def _is_linear(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Linear) and name.rpartition(".")[2] != "logits"


def _fits(layer: nn.Module) -> bool:
    return cast("nn.Linear", layer).in_features % GROUP == 0


def _read_tables_with_long(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Embedding) and not isinstance(parent, _LongIndices):
                setattr(parent, name, _LongIndices(child))
