"""The caption decoder over many captions at once, without a look at padding; and one token at a time.

`CaptionDecoder.forward` takes one caption a picture and computes what is padded. Here the captions of a picture share
one pass over its visual prefix, which does not see them, and every linear layer sees the real tokens alone.

Letters: `B` pictures, `K` captions of a picture, `M = B K`, `P` visual tokens, `N` text tokens, `R` real ones of `M N`,
`E` width, `H` heads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pocketlens.distill.students.caption_decoder import CaptionDecoder

__all__ = ["Packed", "Past", "begun", "next_states", "packed_states"]

_PAD = 0
_NOTHING = torch.zeros(())

Past = list[tuple[Tensor, Tensor]]
"""Keys and values `(M, H, P + n, E / H)` of each layer."""


class Packed(NamedTuple):
    """States `(R, E)` before the logits, and the ids `(R,)` that they are to predict."""

    states: Tensor
    targets: Tensor


def packed_states(
    decoder: CaptionDecoder, visual: Tensor, ids: Tensor, *, dropped: Callable[[Tensor], Tensor] = lambda x: x
) -> Packed:
    """Return the states of all real tokens but the last of each caption.

    Args:
        decoder: as it is.
        visual: `(B, P, E)`.
        ids: `(M, N + 1)`, the captions of a picture in a row, from start to end token, padded with 0.
        dropped: dropout of the text's vectors and of what attention and feed-forward add to it.
    """
    each, prefix = len(ids) // len(visual), visual.shape[1]
    following = ids[:, 1:]
    count = following.shape[1]
    real = (following != _PAD).flatten().nonzero()[:, 0]
    x = dropped(decoder.tokens(ids[:, :-1].flatten()[real]) + decoder.positions.weight[real % count])
    seen = torch.ones(count, prefix + count, dtype=torch.bool).tril(prefix)

    def padded(packed: Tensor) -> Tensor:
        return packed.new_zeros(len(ids) * count, packed.shape[1]).index_copy(0, real, packed).view(len(ids), count, -1)

    for number, block in enumerate(decoder.layers):
        attention, normed = block.attention, block.attention_norm(x)
        looked = block.project(visual)
        query, key, value = (
            attention.split(padded(layer(normed))) for layer in (attention.query, attention.key, attention.value)
        )
        key, value = (
            torch.cat([of_picture.repeat_interleave(each, 0), own], dim=2)
            for of_picture, own in zip(looked[1:], (key, value), strict=True)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + dropped(attention.output(mixed.transpose(1, 2).reshape(len(ids) * count, -1)[real]))
        x = x + dropped(block.feed(block.feed_norm(x)))
        if number + 1 < len(decoder.layers):  # nobody reads what the last block makes of the prefix
            visual = block.finish(visual, *looked, _NOTHING)
    return Packed(decoder.norm(x), following.flatten()[real].long())


def begun(decoder: CaptionDecoder, visual: Tensor) -> Past:
    """Return keys and values of the prefix `visual (M, P, E)`."""
    past: Past = []
    for block in decoder.layers:
        query, key, value = block.project(visual)
        past.append((key, value))
        if len(past) < len(decoder.layers):
            visual = block.finish(visual, query, key, value, _NOTHING)
    return past


def next_states(decoder: CaptionDecoder, token: Tensor, past: Past, *, at: int) -> tuple[Tensor, Past]:
    """Return the states `(M, E)` behind `token (M,)`, the `at`-th of its caption, and the grown past."""
    x = (decoder.tokens(token) + decoder.positions.weight[at])[:, None]
    grown: Past = []
    for block, (keys, values) in zip(decoder.layers, past, strict=True):
        query, key, value = block.project(x)
        grown.append((torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)))
        x = block.finish(x, query, *grown[-1], _NOTHING)
    return decoder.norm(x[:, 0]), grown
