"""Where the student's towers start: ridge regression on what the teacher says, written into the student's own layers.

The student embeds in the teacher's principal directions. The image projection is a regression from the mean of the
feature map, the text tower one from a caption's token counts (a bag of words); training adds what a mean and a bag
cannot tell.

Letters: `T` embedding of the teacher, `D` of the student, `E` width of the text tower, `V` vocabulary.
"""

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.image_encoder import ImageEncoder
from pocketlens.distill.students.text_encoder import TextEncoder

__all__ = ["principal_directions", "ridge", "start_images", "start_texts"]

_PAD: Final = 0
_IMAGE_PENALTY: Final = 0.05
_TEXT_PENALTY: Final = 0.25
_LONGEST: Final = 0.98
"""Quantile of the token vectors' lengths; longer ones are shortened to it."""


def principal_directions(sides: Sequence[Tensor], width: int) -> Tensor:
    """Return `(T, width)`, orthonormal: where the `sides (N, T)`, each weighing the same, are longest."""
    gram = sum((side.T @ side / len(side) for side in sides), torch.zeros(()))
    _, directions = torch.linalg.eigh(gram)
    longest: Tensor = directions[:, -width:].flip(1)
    return longest


@torch.no_grad()
def start_images(image: ImageEncoder, means: Tensor, targets: Tensor) -> None:
    """Set the projection so that mean feature maps `means (N, C)` give `targets (N, D)`; queries start with no say."""
    centre, level = means.mean(dim=0), targets.mean(dim=0)
    weight = ridge(means - centre, targets - level, _IMAGE_PENALTY)
    image.projection.weight.zero_()
    image.projection.weight[:, : len(centre)] = weight.T
    image.projection.bias.copy_(level - centre @ weight)


@torch.no_grad()
def start_texts(text: TextEncoder, ids: Tensor, targets: Tensor) -> None:
    """Set token vectors and projection so that `ids (N, L)`, padded with 0, give `targets (N, D)` as bags of words.

    The tower normalises each token's vector, which a bag must not: what counts in it is how long a vector is. One
    more dimension therefore fills all vectors up to one length. A random rotation, to which the norm is blind, then
    spreads it over all dimensions: an outlier would cost int8 its precision. The blocks start by adding nothing.
    """
    vocabulary, width = text.tokens.weight.shape
    counts = torch.zeros(len(ids), vocabulary).scatter_add_(1, ids.long(), torch.ones(ids.shape))
    counts[:, _PAD] = 0
    bag = ridge(counts / counts.sum(dim=1, keepdim=True), targets, _TEXT_PENALTY)
    left, sizes, right = torch.linalg.svd(bag, full_matrices=False)
    kept = min(width - 1, len(sizes))
    vectors = left[:, :kept] * sizes[:kept]
    lengths = vectors.norm(dim=1, keepdim=True)
    longest = lengths.quantile(_LONGEST)
    vectors = vectors * (longest / lengths).clamp(max=1)
    filling = (longest**2 - vectors.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    filled = functional.pad(torch.cat([vectors, filling], dim=1), (0, width - kept - 1))
    turn, _ = torch.linalg.qr(torch.randn(width, width))
    text.tokens.weight.copy_(filled @ turn * (width**0.5 / longest))
    text.projection.weight.copy_((turn.T[:, :kept] @ right[:kept]).T)
    text.projection.bias.zero_()
    for block in cast("list[Block]", list(text.blocks)):
        for layer in (block.attention.output, cast("nn.Linear", block.feed[2])):
            layer.weight.zero_()
            layer.bias.zero_()


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Return `(I, O)`; `penalty` is relative to the mean of the inputs' squares."""
    gram = inputs.T @ inputs
    gram = gram + penalty * gram.diagonal().mean() * torch.eye(len(gram))
    solved: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return solved
