"""The captioning teacher: a wider decoder than the student's over both cached maps.

Letters: `B` pictures, `S` places, `C` channels, `P` visual tokens, `E` width.
"""

from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.flickr8k.captions import CaptionTraining, found_captions
from benchmarks.flickr8k.search import texts
from benchmarks.flickr8k.small import SMALL, as_maps
from benchmarks.flickr8k.word_space import WordSpace
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.blocks import RMSNorm
from pocketlens.distill.students.caption_decoder import CaptionDecoder

__all__ = ["TEACHING", "GridCaptioner", "write_captions"]

WIDTH: Final = 256
_HEADS: Final = 8
_SIDE: Final = 4

TEACHING: Final = CaptionTraining(epochs=4)
"""How the captioning teacher is trained."""


class GridCaptioner(nn.Module):
    """Grid -> caption. The grid is averaged to 4 x 4 places; its mean is one token more.

    Args:
        channels: C of the grid.
        vocabulary: number of entries.
    """

    def __init__(self, *, channels: int, vocabulary: int) -> None:
        super().__init__()
        sizes = msgspec.structs.replace(SMALL, width=WIDTH, heads=_HEADS, vocab_size=vocabulary)
        self.adapter, self.norm = nn.Linear(channels, WIDTH), RMSNorm(WIDTH)
        self.positions = nn.Parameter(torch.randn(_SIDE**2 + 1, WIDTH) * 0.02)
        self.decoder = CaptionDecoder(sizes, visual_tokens=_SIDE**2 + 1)

    @torch.no_grad()
    def start(self, space: WordSpace) -> None:
        """Begin with words and places in one space."""
        self.adapter.weight.copy_(space.places)
        self.adapter.bias.copy_(space.level)
        self.decoder.tokens.weight.copy_(space.words)
        self.decoder.logits.weight.copy_(space.words * (0.5 * WIDTH**-0.5))

    def visual(self, maps: Tensor) -> Tensor:
        """`(B, S, C)` -> `(B, P, E)`."""
        squares = functional.adaptive_avg_pool2d(as_maps(maps), _SIDE).flatten(2).transpose(1, 2)
        places = torch.cat([maps.mean(dim=1, keepdim=True), squares], dim=1)
        tokens: Tensor = self.norm(self.adapter(places)) + self.positions
        return tokens

    def weights(self) -> list[Tensor]:
        """Return what is trained: everything."""
        return list(self.parameters())


def write_captions(
    model: GridCaptioner, words: Tokenizer, grids: NDArray[np.float16], *, beams: int = 1
) -> list[tuple[str, float]]:
    """Return a caption and its log-probability for each of `grids (N, S, C)`; one beam is greedy."""
    ids, scores = found_captions(model, words, grids, beams=beams)
    return list(zip(texts(words, ids), scores.tolist(), strict=True))
