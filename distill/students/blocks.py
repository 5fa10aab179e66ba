"""Transformer parts that lower well everywhere.

Separate q, k and v projections, 3-D `bmm`, an explicit softmax and an `rsqrt` norm: on XNNPACK this
halves the number of delegated subgraphs against fused attention (measured: 23 -> 11 in a text tower).

Letters: `B` batch, `S` sequence, `E` width, `H` heads, `K` width of one head.
"""

import torch
from torch import Tensor, nn

__all__ = ["MASKED", "Attention", "Block", "RMSNorm", "unit_norm"]

MASKED = -1e4
"""Added to the scores of hidden positions. Not -inf: a cache may hold uninitialised memory."""


def unit_norm(x: Tensor) -> Tensor:
    """Return `x` scaled to unit Euclidean length along the last axis."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-12)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., E)` -> `(..., E)`."""
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    """Multi-head attention whose keys and values can come from a cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """`(B, S, E)` -> `(B, H, S, K)`."""
        split: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend `query (B, H, Q, K)` over `keys`, `values (B, H, S, K)`.

        `mask` is added to the scores and broadcasts to `(B, 1, Q, S)`. Returns `(B, Q, E)`.
        """
        batch, heads, queries, depth = query.shape
        scores = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)) * depth**-0.5
        scores = scores.view(batch, heads, queries, -1) + mask
        weights = torch.softmax(scores, dim=-1).flatten(0, 1)
        mixed = torch.bmm(weights, values.flatten(0, 1)).view(batch, heads, queries, depth)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """A pre-norm transformer block with a GELU feed-forward of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_norm = RMSNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `x (B, S, E)`, each `(B, H, S, K)`."""
        normed = self.attention_norm(x)
        attention = self.attention
        return (
            attention.split(attention.query(normed)),
            attention.split(attention.key(normed)),
            attention.split(attention.value(normed)),
        )

    def finish(self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend, add, feed forward, add: `(B, S, E)` -> `(B, S, E)`."""
        x = x + self.attention(query, keys, values, mask)
        fed: Tensor = self.feed(self.feed_norm(x))
        return x + fed

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Self-attention over `x (B, S, E)` under `mask`; returns `(B, S, E)`."""
        return self.finish(x, *self.project(x), mask)
