"""The embedding teacher: trained heads on two frozen towers, several of them as an ensemble.

Each head attends to its tower's places (49 of the grid, the caption's tokens) with `Q` learned queries,
concatenates what they gather, and adds a projection of the tower's own pooled vector. Scores and sums run on the
raw features, so a step costs little more than reading them.

Letters: `B` batch, `S` places, `C` channels, `D` embedding.
"""

import math
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.losses import contrastive
from pocketlens.distill.schedule import warmup_cosine

__all__ = ["Features", "Head", "HeadRecipe", "Pair", "embed_grids", "embed_tokens", "train_pair"]

_HIDDEN: Final = -1e4
_MAX_SCALE: Final = math.log(100)


class HeadRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How one pair of heads is trained."""

    queries: int = 4
    dim: int = 512
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    batch: int = 1024
    epochs: int = 20
    ema: float = 0.95
    seed: int = 0


class Features(NamedTuple):
    """Cached features: grids `(V, N, 49, C)`, pooled `(V, N, C)`, tokens `(5 N, S, C)` and their lengths `(5 N,)`."""

    grids: NDArray[np.float16]
    pooled: NDArray[np.float16]
    tokens: NDArray[np.float16]
    lengths: NDArray[np.int64]


class Head(nn.Module):
    """Places and a pooled vector -> embedding of unit norm."""

    def __init__(self, channels: int, pooled: int, recipe: HeadRecipe, *, places: int = 0) -> None:
        super().__init__()
        self.scores = nn.Linear(channels, recipe.queries)
        self.prior = nn.Parameter(torch.randn(places, recipe.queries) * 0.5) if places else None
        self.norm = nn.LayerNorm(channels)
        self.gathered = nn.Linear(recipe.queries * channels, recipe.dim)
        self.pooled = nn.Sequential(nn.LayerNorm(pooled), nn.Dropout(recipe.dropout), nn.Linear(pooled, recipe.dim))
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, places: Tensor, real: Tensor | None, pooled: Tensor) -> Tensor:
        """`places (B, S, C)`, which are `real (B, S)`, `pooled (B, P)` -> `(B, D)`."""
        scores = self.scores(places)
        if self.prior is not None:
            scores = scores + self.prior
        if real is not None:
            scores = scores.masked_fill(~real[..., None], _HIDDEN)
        gathered = torch.bmm(scores.softmax(dim=1).transpose(1, 2), places)  # (B, Q, C)
        out = self.gathered(self.dropout(self.norm(gathered)).flatten(1)) + self.pooled(pooled)
        return functional.normalize(out, dim=1)


class Pair(nn.Module):
    """An image head, a text head and their temperature."""

    def __init__(self, features: Features, recipe: HeadRecipe) -> None:
        super().__init__()
        places, channels = features.grids.shape[2:]
        width = features.tokens.shape[2]
        self.image = Head(channels, features.pooled.shape[2], recipe, places=places)
        self.text = Head(width, width, recipe)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, features: Features, view: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
        """Return `(B, D)` of pictures `rows` in the views `view`."""
        grids = torch.from_numpy(features.grids[view, rows].astype(np.float32))
        out: Tensor = self.image(grids, None, torch.from_numpy(features.pooled[view, rows].astype(np.float32)))
        return out

    def texts(self, features: Features, rows: NDArray[np.int64]) -> Tensor:
        """Return `(B, D)` of captions `rows`."""
        lengths = torch.from_numpy(features.lengths[rows])
        longest = int(lengths.max())
        tokens = torch.from_numpy(features.tokens[rows, :longest].astype(np.float32))
        pooled = tokens.sum(dim=1) / lengths[:, None]
        out: Tensor = self.text(tokens, torch.arange(longest) < lengths[:, None], pooled)
        return out


def train_pair(features: Features, recipe: HeadRecipe) -> Pair:
    """Return heads trained by InfoNCE on pictures in random views with one random caption each, weights averaged."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    pair = Pair(features, recipe)
    weights: list[Tensor] = list(pair.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    average = [weight.detach().clone() for weight in weights]
    views, count = features.pooled.shape[:2]
    per_epoch = count // recipe.batch
    steps = recipe.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(count)
        rows = order[step % per_epoch * recipe.batch :][: recipe.batch]
        images = pair.images(features, rng.integers(views, size=len(rows)), rows)
        texts = pair.texts(features, rows * 5 + rng.integers(5, size=len(rows)))
        optimizer.param_groups[0]["lr"] = warmup_cosine(
            step, total=steps, warmup=max(1, steps // 10), peak=recipe.learning_rate
        )
        optimizer.zero_grad()
        contrastive(images, texts, pair.scale.exp()).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            pair.scale.clamp_(max=_MAX_SCALE)
            torch._foreach_lerp_(average, weights, 1 - min(recipe.ema, (step + 1) / (step + 10)))
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return pair.eval()


@torch.inference_mode()
def embed_grids(pairs: list[Pair], features: Features) -> NDArray[np.float32]:
    """Return `(V, N, K D)` of unit norm: the ensemble's `K` embeddings side by side, so that cosines are means."""
    views, count = features.pooled.shape[:2]
    parts = []
    for pair in pairs:
        rows = [np.arange(start, min(start + 500, count)) for start in range(0, count, 500)]
        parts.append(
            torch.stack(
                [
                    torch.cat([pair.images(features, np.full(len(part), view), part) for part in rows])
                    for view in range(views)
                ]
            )
        )
    out: NDArray[np.float32] = (torch.cat(parts, dim=2) / len(pairs) ** 0.5).numpy()
    return out


@torch.inference_mode()
def embed_tokens(pairs: list[Pair], features: Features) -> NDArray[np.float32]:
    """Return `(5 N, K D)` of unit norm; see `embed_grids`."""
    count = len(features.lengths)
    rows = [np.arange(start, min(start + 1000, count)) for start in range(0, count, 1000)]
    parts = [torch.cat([pair.texts(features, part) for part in rows]) for pair in pairs]
    out: NDArray[np.float32] = (torch.cat(parts, dim=1) / len(pairs) ** 0.5).numpy()
    return out
