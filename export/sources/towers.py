"""The two towers of a foreign dual encoder, wrapped into the graphs of a bundle.

Letters: `B` batch, `H`, `W` input size, `D` embedding, `T` text length of the bundle.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pocketlens.distill.students.blocks import unit_norm

__all__ = ["ImageGraph", "TextGraph", "normalised"]


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return `(B, 3, H, W)` float32 as the model's own library computes it: `(pixels / 255 - mean) / std`."""
    return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


class ImageGraph(nn.Module):
    """uint8 pixels -> embedding. Cast, mean and standard deviation are inside.

    Args:
        tower: `(B, 3, H, W)` float32 -> features `(B, D)`, not yet of unit norm.
        mean: three numbers, of pixels scaled to [0, 1].
        std: likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, tower: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower
        level = 255.0 * torch.tensor(tuple(std), dtype=torch.float32)
        shift = -255.0 * torch.tensor(tuple(mean), dtype=torch.float32) / level
        # One multiplication and one addition, in the order that int8 export folds into the first convolution.
        self.register_buffer("scale", (1.0 / level).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """`pixels (B, H, W, 3)` uint8 RGB -> `(B, 3, H, W)` float32."""
        return pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels (B, H, W, 3)` uint8 RGB -> `(B, D)` float32 of unit norm."""
        return unit_norm(self.tower(self.normalise(pixels)))


class TextGraph(nn.Module):
    """The bundle's ids -> embedding. The bundle always gives `<bos> … <eos> <pad> …`.

    A model that has no token for the beginning gets the first column cut off; one that pads with another id
    than the bundle's `<pad>` gets its own.

    Args:
        tower: `(B, T')` ids -> features `(B, D)`, not yet of unit norm.
        has_bos: whether the model's own texts begin with a token.
        replace_pad: (the bundle's id, the model's id) of padding, or `None` where they are the same.
    """

    def __init__(self, tower: nn.Module, *, has_bos: bool, replace_pad: tuple[int, int] | None) -> None:
        super().__init__()
        self.tower = tower
        self.has_bos = has_bos
        self.replace_pad = replace_pad

    def own_ids(self, ids: Tensor) -> Tensor:
        """`ids (B, T)` int32 -> the model's own layout, `(B, T)` or, without a first token, `(B, T - 1)`."""
        if not self.has_bos:
            ids = ids[:, 1:]
        if self.replace_pad is not None:
            found, own = self.replace_pad
            ids = torch.where(ids == found, torch.full_like(ids, own), ids)
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """`ids (B, T)` int32 -> `(B, D)` float32 of unit norm."""
        return unit_norm(self.tower(self.own_ids(ids)))
