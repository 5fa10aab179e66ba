"""BLIP's text decoder as prefill and decode step with a static cache.

BLIP (Li et al. 2022, section 3.1) looks at the picture through cross-attention in every layer. Its keys and values
depend on the picture alone, and have the shape of those of self-attention, so one cache holds both: positions 0 to
V - 1 are the picture's, V and on are the text's. That is the layout of docs/bundle.md; the runtime sees no
difference to a student, whose visual tokens are a prefix of the text.

Letters: `B` batch, `V` visual tokens of width `E`, `S = V + max_tokens`, `W` width, `L` layers, `A` heads of width `K`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.students.blocks import MASKED

__all__ = ["BlipDecodeStep", "BlipPrefill"]


def _heads(x: Tensor, heads: int) -> Tensor:
    """`(B, N, W)` -> `(B, A, N, K)`."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`(B, A, N, K)` over `(B, A, P, K)` -> `(B, N, W)`; `mask` broadcasts to `(B, A, N, P)`."""
    scores = torch.matmul(query, keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), values).transpose(1, 2).flatten(2)


class BlipPrefill(nn.Module):
    """Visual tokens -> cache with the keys and values of cross-attention.

    Args:
        decoder: a `BlipTextLMHeadModel`.
        max_tokens: text positions that are kept free.
    """

    def __init__(self, decoder: Any, *, max_tokens: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layer.crossattention.self for layer in decoder.bert.encoder.layer)
        self.heads = int(decoder.config.num_attention_heads)
        self.max_tokens = max_tokens

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """`(B, V, E)` -> cache `(B, L, 2, A, S, K)`; axis 2 is keys, values; positions from V on are 0."""
        parts: list[Any] = list(self.parts)
        layers = [
            torch.stack([_heads(p.key(visual_tokens), self.heads), _heads(p.value(visual_tokens), self.heads)], dim=1)
            for p in parts
        ]
        return functional.pad(torch.stack(layers, dim=1), (0, 0, 0, self.max_tokens))


class BlipDecodeStep(nn.Module):
    """One token and a cache -> logits of the next token and the cache with the token in it.

    Args:
        decoder: a `BlipTextLMHeadModel`; its weights are shared.
        visual_tokens: V.
        max_tokens: text positions of the cache.
    """

    order: Tensor

    def __init__(self, decoder: Any, *, visual_tokens: int, max_tokens: int) -> None:
        super().__init__()
        self.embeddings = decoder.bert.embeddings
        self.layers = decoder.bert.encoder.layer
        self.predictions = decoder.cls.predictions
        self.heads = int(decoder.config.num_attention_heads)
        self.visual_tokens = visual_tokens
        self.register_buffer("order", torch.arange(max_tokens, dtype=torch.int32), persistent=False)

    def forward(self, token: Tensor, position: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one step.

        Args:
            token: `(B,)` int32, the id at `position`.
            position: `(B,)` int32 in [V, S): the first token of a caption is at V.
            cache: `(B, L, 2, A, S, K)` float32.

        Returns:
            logits `(B, vocabulary)` for the token at `position + 1`, and the cache after this step.
        """
        count = self.visual_tokens
        offset = position - count
        embeddings: Any = self.embeddings
        x = embeddings.word_embeddings(token) + embeddings.position_embeddings(offset)
        x = embeddings.LayerNorm(x)[:, None]  # (B, 1, W)
        here = (self.order[None] == offset[:, None])[:, None, :, None]  # (B, 1, max_tokens, 1)
        hidden = (self.order[None] > offset[:, None]).to(torch.float32) * MASKED
        mask = hidden[:, None, None, :]  # (B, 1, 1, max_tokens)
        seen, text = cache[..., :count, :], cache[..., count:, :]
        layers: list[Any] = list(self.layers)
        grown = []
        for index, layer in enumerate(layers):
            own, cross = layer.attention, layer.crossattention
            query, key, value = (_heads(p(x), self.heads) for p in (own.self.query, own.self.key, own.self.value))
            keys = torch.where(here, key, text[:, index, 0])
            values = torch.where(here, value, text[:, index, 1])
            grown.append(torch.stack([keys, values], dim=1))
            x = own.output(_attend(query, keys, values, mask), x)
            query = _heads(cross.self.query(x), self.heads)
            x = cross.output(_attend(query, seen[:, index, 0], seen[:, index, 1], None), x)
            x = layer.output(layer.intermediate(x), x)
        logits: Tensor = self.predictions(x[:, 0])
        return logits, torch.cat([seen, torch.stack(grown, dim=1)], dim=4)
