"""The same model in a form that lowers well: branches fused, attention in separate projections.

Everything here keeps the outputs, up to rounding; tests hold it to that.
"""

import copy
import math
from typing import Any, cast

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from pocketlens.distill.students.blocks import MASKED

__all__ = ["SplitAttention", "lowerable"]


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` with batch first, as three projections, two `bmm` and an explicit softmax.

    torch keeps the three projections in one matrix and cuts it up while it runs, which keeps backends from
    taking them over; in eval mode it may call a fused kernel that no exporter knows.

    Args:
        source: batch first, without dropout at inference, extra keys or a bias on keys and values.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = source.embed_dim, source.num_heads
        if source.in_proj_weight is not None:
            weights = tuple(source.in_proj_weight.detach().chunk(3))
        else:  # keys and values have widths of their own
            weights = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        bias = source.in_proj_bias
        biases = (None, None, None) if bias is None else bias.detach().chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.output = source.out_proj
        self.depth = width // self.heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend `query (B, Q, E)` over `key`, `value (B, S, E)`; returns `(B, Q, E)` and no weights.

        `attn_mask` is added to the scores: `(Q, S)`, or `(B * heads, Q, S)`.
        """
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        scores = torch.bmm(q, k.transpose(1, 2)) * self.depth**-0.5
        if attn_mask is not None:
            scores = scores + attn_mask
        mixed = torch.bmm(torch.softmax(scores, dim=-1), v)  # (B * heads, Q, K)
        joined = mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        return self.output(joined), None

    def _split(self, x: Tensor) -> Tensor:
        """`(B, S, E)` -> `(B * heads, S, K)`."""
        split: Tensor = x.unflatten(-1, (self.heads, self.depth)).transpose(1, 2).flatten(0, 1)
        return split


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


@torch.no_grad()
def lowerable(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval mode that gives the same outputs and lowers well.

    - Branches that only training needs are fused: timm's `reparameterize_model`, which calls `fuse` or
      `reparameterize` of every part that has one (FastViT, MobileOne and RepViT, hence MobileCLIP).
    - `nn.MultiheadAttention` becomes `SplitAttention`; timm's attention leaves the fused kernel.
    - Masks of -inf become -1e4: a softmax gives the same zeros, and half precision and quantizers survive it.
    """
    fused: nn.Module = reparameterize_model(copy.deepcopy(model).eval(), inplace=True)
    for parent in list(fused.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.MultiheadAttention and _splittable(child):
                setattr(parent, name, SplitAttention(child))
    for module in fused.modules():
        if getattr(module, "fused_attn", False):
            cast("Any", module).fused_attn = False
        mask = getattr(module, "attn_mask", None)
        if isinstance(mask, Tensor) and mask.is_floating_point():
            mask.clamp_(min=MASKED)
    return fused.requires_grad_(False)


def _splittable(attention: nn.MultiheadAttention) -> bool:
    plain = attention.bias_k is None and attention.bias_v is None and not attention.add_zero_attn
    return plain and attention.batch_first and math.isclose(attention.dropout, 0.0)
