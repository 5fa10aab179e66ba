"""The text tower: a small bidirectional transformer over the bundle's own BPE ids."""

import torch
from torch import Tensor, nn

from pocketlens.distill.students.blocks import MASKED, Block, RMSNorm, unit_norm
from pocketlens.distill.students.config import StudentConfig

__all__ = ["TextEncoder"]

_PAD_ID = 0


class TextEncoder(nn.Module):
    """Token ids -> embedding, the mean over real tokens projected to unit norm."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.randn(1, config.text_length, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.text_layers))
        self.norm = RMSNorm(config.width)
        self.projection = nn.Linear(config.width, config.embed_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids (B, T)` int32, padded with 0 -> embedding `(B, D)` of unit norm.

        Training may hand in fewer columns than T: padding changes nothing.
        """
        real = (ids != _PAD_ID).to(torch.float32)  # (B, T)
        mask = ((1.0 - real) * MASKED)[:, None, None, :]  # (B, 1, 1, T)
        count = ids.shape[1]
        # no slice of the whole: coremltools does not know the `alias` that it is exported as
        positions = self.positions if count == self.positions.shape[1] else self.positions[:, :count]
        x = self.tokens(ids) + positions
        for block in self.blocks:
            x = block(x, mask)
        weights = real[:, :, None]
        pooled = (self.norm(x) * weights).sum(dim=1) / weights.sum(dim=1)
        return unit_norm(self.projection(pooled))
