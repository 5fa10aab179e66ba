"""The captioner: visual tokens as the prefix of a decoder-only transformer with a static cache.

Three views of the same weights: `CaptionDecoder.forward` scores whole captions (training),
`CaptionPrefill` fills the cache from the visual tokens, `CaptionDecodeStep` adds one token.

Letters: `B` batch, `V` visual tokens, `N` text tokens, `S = V + caption_tokens` cache positions,
`E` width, `L` layers, `H` heads, `K` width of one head.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.students.blocks import MASKED, Block, RMSNorm
from pocketlens.distill.students.config import StudentConfig

__all__ = ["CaptionDecodeStep", "CaptionDecoder", "CaptionPrefill"]


class CaptionDecoder(nn.Module):
    """A decoder-only transformer. Visual tokens see each other; text sees them and its own past."""

    mask: Tensor

    def __init__(self, config: StudentConfig, *, visual_tokens: int) -> None:
        super().__init__()
        self.visual_tokens = visual_tokens
        self.caption_tokens = config.caption_tokens
        self.length = visual_tokens + config.caption_tokens
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.caption_tokens, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.decoder_layers))
        self.norm = RMSNorm(config.width)
        self.logits = nn.Linear(config.width, config.vocab_size, bias=False)
        order = torch.arange(self.length)
        past = order[None, :] <= order[:, None]
        prefix = order[None, :] < visual_tokens
        mask = torch.where(past | prefix, 0.0, MASKED)
        self.register_buffer("mask", mask[None, None], persistent=False)  # (1, 1, S, S)

    @property
    def layers(self) -> list[Block]:
        """The transformer blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def forward(self, visual: Tensor, ids: Tensor) -> Tensor:
        """Return next-token logits `(B, N, vocab)` for `visual (B, V, E)` and `ids (B, N)` int32."""
        count = ids.shape[1]
        text = self.tokens(ids) + self.positions.weight[:count]
        x = torch.cat([visual, text], dim=1)
        mask = self.mask[:, :, : x.shape[1], : x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.logits(self.norm(x[:, self.visual_tokens :]))
        return logits


class CaptionPrefill(nn.Module):
    """Visual tokens -> cache."""

    def __init__(self, decoder: CaptionDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """`(B, V, E)` -> cache `(B, L, 2, H, S, K)`; axis 2 is keys, values; positions from V on are 0."""
        decoder = self.decoder
        count = decoder.visual_tokens
        mask = decoder.mask[:, :, :count, :count]
        x, layers = visual_tokens, []
        for index, block in enumerate(decoder.layers):
            query, keys, values = block.project(x)
            layers.append(torch.stack([keys, values], dim=1))  # (B, 2, H, V, K)
            if index + 1 < len(decoder.layers):  # nobody reads what the last block makes of the prefix
                x = block.finish(x, query, keys, values, mask)
        return functional.pad(torch.stack(layers, dim=1), (0, 0, 0, decoder.caption_tokens))


class CaptionDecodeStep(nn.Module):
    """One token and a cache -> logits of the next token and the cache with the token in it."""

    order: Tensor

    def __init__(self, decoder: CaptionDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("order", torch.arange(decoder.length, dtype=torch.int32), persistent=False)

    def forward(self, token: Tensor, position: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one step.

        Args:
            token: `(B,)` int32, the id at `position`.
            position: `(B,)` int32 in [V, S): the first token of a caption is at V.
            cache: `(B, L, 2, H, S, K)` float32.

        Returns:
            logits `(B, vocab)` for the token at `position + 1`, and the cache after this step.
        """
        decoder = self.decoder
        x = (decoder.tokens(token) + decoder.positions(position - decoder.visual_tokens))[:, None]  # (B, 1, E)
        here = (self.order[None] == position[:, None])[:, None, :, None]  # (B, 1, S, 1)
        hidden = (self.order[None] > position[:, None]).to(torch.float32) * MASKED
        mask = hidden[:, None, None, :]  # (B, 1, 1, S)
        layers = []
        for index, block in enumerate(decoder.layers):
            query, key, value = block.project(x)
            keys = torch.where(here, key, cache[:, index, 0])
            values = torch.where(here, value, cache[:, index, 1])
            layers.append(torch.stack([keys, values], dim=1))
            x = block.finish(x, query, keys, values, mask)
        return decoder.logits(decoder.norm(x[:, 0])), torch.stack(layers, dim=1)
