"""The captioning teacher: a small encoder-decoder over the frozen grid, words as tokens.

Letters: `B` pictures, `K` captions of a picture, `N` tokens, `S` places, `E` width, `V` words.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.evaluation.captions import tokenize
from pocketlens.distill.schedule import warmup_cosine

__all__ = ["CaptionerRecipe", "GridCaptioner", "Words", "train_captioner", "write_captions"]

_PAD, _BOS, _EOS, _UNKNOWN = range(4)
_SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>")
_NEVER: Final = -1e9

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values `(B, H, S, E / H)` of each layer."""


class CaptionerRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and training. `rarest`: a word that fewer captions have is unknown."""

    width: int = 192
    heads: int = 4
    layers: int = 2
    dropout: float = 0.3
    longest: int = 22
    rarest: int = 4
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    pictures: int = 48
    epochs: int = 5
    ema: float = 0.99
    seed: int = 0


class Words:
    """The vocabulary: words of the training captions as `tokenize` cuts them."""

    def __init__(self, captions: Sequence[Sequence[str]], recipe: CaptionerRecipe) -> None:
        counts = Counter(word for texts in captions for text in texts for word in tokenize(text).split())
        self.entries = [*_SPECIAL, *(word for word, count in counts.most_common() if count >= recipe.rarest)]
        self._ids = {word: number for number, word in enumerate(self.entries)}
        self._longest = recipe.longest

    def encode(self, captions: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Return `(B, K, N)` ids from start to end mark, cut to the longest and padded."""
        out = np.full((len(captions), len(captions[0]), self._longest), _PAD, dtype=np.int64)
        for row, texts in enumerate(captions):
            for column, text in enumerate(texts):
                ids = [self._ids.get(word, _UNKNOWN) for word in tokenize(text).split()[: self._longest - 2]]
                out[row, column, : len(ids) + 2] = [_BOS, *ids, _EOS]
        return out

    def decode(self, ids: Tensor) -> list[str]:
        """Return the words of each row of `ids (B, N)` before its end mark."""
        texts = []
        for row in ids.tolist():
            end = next((place for place, word in enumerate(row) if word in (_PAD, _EOS)), len(row))
            texts.append(" ".join(self.entries[word] for word in row[:end]))
        return texts


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def _split(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], *, causal: bool = False) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self._split(self.query(x)), *memory, is_causal=causal)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """Pre-norm self-attention, cross-attention where `crosses`, and a feed-forward of twice the width."""

    def __init__(self, recipe: CaptionerRecipe, *, crosses: bool) -> None:
        super().__init__()
        width = recipe.width
        self.attention = _Attention(width, recipe.heads)
        self.cross = _Attention(width, recipe.heads) if crosses else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(recipe.dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(
        self, x: Tensor, seen: tuple[Tensor, Tensor] | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y = self.norms[0](x)
        memory = self.attention.memory(y)
        if past is not None:
            memory = (torch.cat([past[0], memory[0]], dim=2), torch.cat([past[1], memory[1]], dim=2))
        causal = self.cross is not None and past is None
        x = x + self.dropout(self.attention(y, memory, causal=causal))
        if self.cross is not None and seen is not None:
            x = x + self.dropout(self.cross(self.norms[1](x), seen))
        return x + self.dropout(self.feed(self.norms[2](x))), memory


class GridCaptioner(nn.Module):
    """Grid -> caption. The word vectors are also the output layer's."""

    def __init__(self, recipe: CaptionerRecipe, *, places: int, channels: int, words: int) -> None:
        super().__init__()
        width = recipe.width
        self.norm, self.input = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.places = nn.Parameter(torch.randn(places, width) * 0.02)
        self.encoder = _Layer(recipe, crosses=False)
        self.encoded = nn.LayerNorm(width)
        self.words = nn.Embedding(words, width)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        self.positions = nn.Parameter(torch.randn(recipe.longest + 8, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(recipe, crosses=True) for _ in range(recipe.layers))
        self.decoded = nn.LayerNorm(width)
        self.dropout = nn.Dropout(recipe.dropout)

    def look(self, grids: Tensor) -> Memory:
        """`(B, S, C)` -> what each decoder layer attends to."""
        x, _ = self.encoder(self.input(self.dropout(self.norm(grids))) + self.places)
        x = self.encoded(x)
        return [layer.cross.memory(x) for layer in self.layers]  # type: ignore[union-attr, operator]

    def forward(self, ids: Tensor, seen: Memory, past: Memory | None = None, *, at: int = 0) -> tuple[Tensor, Memory]:
        """`ids (B, N)` from position `at` on -> states `(B, N, E)` and the grown memory of each layer."""
        x = self.dropout(self.words(ids) * self.words.embedding_dim**0.5 + self.positions[at : at + ids.shape[1]])
        memory: Memory = []
        for number, layer in enumerate(self.layers):
            x, grown = layer(x, seen[number], None if past is None else past[number])
            memory.append(grown)
        return self.decoded(x), memory

    def logits(self, states: Tensor) -> Tensor:
        """`(..., E)` -> `(..., V)`."""
        return states @ self.words.weight.T


def train_captioner(
    grids: NDArray[np.float16], captions: Sequence[Sequence[str]], recipe: CaptionerRecipe
) -> tuple[GridCaptioner, Words]:
    """Return a captioner trained on all captions of `grids (views, N, S, C)`, weights averaged, and its words."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    words = Words(captions, recipe)
    ids = words.encode(captions)
    views, count, places, channels = grids.shape
    model = GridCaptioner(recipe, places=places, channels=channels, words=len(words.entries))
    weights: list[Tensor] = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    average = [weight.detach().clone() for weight in weights]
    per_epoch = count // recipe.pictures
    steps = per_epoch * recipe.epochs
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(count)
        rows = order[step % per_epoch * recipe.pictures :][: recipe.pictures]
        loss = _loss(model, grids[rng.integers(views, size=len(rows)), rows], ids[rows], recipe)
        rate = warmup_cosine(step, total=steps, warmup=max(1, steps // 12), peak=recipe.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - min(recipe.ema, (step + 1) / (step + 10)))
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return model.eval(), words


def _loss(model: GridCaptioner, grids: NDArray[np.float16], ids: NDArray[np.int64], recipe: CaptionerRecipe) -> Tensor:
    """Return the cross-entropy of `ids (B, K, N)`; each picture is looked at once for its K captions."""
    seen = [
        (key.repeat_interleave(ids.shape[1], 0), value.repeat_interleave(ids.shape[1], 0))
        for key, value in model.look(torch.from_numpy(grids.astype(np.float32)))
    ]
    rows = torch.from_numpy(ids).flatten(0, 1)
    rows = rows[:, : int((rows != _PAD).sum(dim=1).max())]
    states, _ = model(rows[:, :-1], seen)
    targets = rows[:, 1:]
    real = targets != _PAD
    return functional.cross_entropy(model.logits(states[real]), targets[real], label_smoothing=recipe.smoothing)


@torch.inference_mode()
def write_captions(
    model: GridCaptioner, words: Words, grids: NDArray[np.float16], *, beams: int = 1, alpha: float = 0.7
) -> list[tuple[str, float]]:
    """Return a caption and its log-probability for each of `grids (N, S, C)`.

    Beam search divides log-probabilities by length to the power `alpha` (Wu et al. 2016, section 7).
    One beam is greedy.
    """
    out: list[tuple[str, float]] = []
    for start in range(0, len(grids), 100):
        seen = model.look(torch.from_numpy(grids[start : start + 100].astype(np.float32)))
        ids, scores = _search(model, seen, beams, alpha)
        out += zip(words.decode(ids), scores.tolist(), strict=True)
    return out


def _search(model: GridCaptioner, seen: Memory, beams: int, alpha: float) -> tuple[Tensor, Tensor]:
    batch = len(seen[0][0])
    seen = [(key.repeat_interleave(beams, 0), value.repeat_interleave(beams, 0)) for key, value in seen]
    past = [(key[:, :, :0], value[:, :, :0]) for key, value in seen]
    token = torch.full((batch * beams, 1), _BOS)
    ids = torch.zeros(batch * beams, 0, dtype=torch.int64)
    scores = torch.full((batch, beams), _NEVER)
    scores[:, 0] = 0.0  # all beams start equal: only the first counts
    done, lengths = torch.zeros(batch, beams, dtype=torch.bool), torch.zeros(batch, beams)
    first = torch.arange(batch)[:, None] * beams
    for step in range(len(model.positions) - 1):
        states, past = model(token, seen, past, at=step)
        next_ = model.logits(states[:, -1]).log_softmax(dim=-1).view(batch, beams, -1)
        next_[..., [_PAD, _BOS, _UNKNOWN]] = _NEVER
        next_ = next_.masked_fill(done[..., None], _NEVER)
        next_[..., _PAD] = torch.where(done, 0.0, next_[..., _PAD])
        total, grown = scores[..., None] + next_, lengths + ~done
        best = (total / grown.clamp(min=1)[..., None] ** alpha).flatten(1).topk(beams, dim=1).indices
        beam, chosen = best // next_.shape[-1], best % next_.shape[-1]
        scores, lengths = total.flatten(1).gather(1, best), grown.gather(1, beam)
        done = done.gather(1, beam) | (chosen == _EOS)
        rows = (first + beam).flatten()
        ids = torch.cat([ids[rows], chosen.flatten()[:, None]], dim=1)
        past = [(key[rows], value[rows]) for key, value in past]
        token = chosen.flatten()[:, None]
        if bool(done.all()):
            break
    # Sorted by the normalised score: the first beam of each picture is the answer.
    return ids.view(batch, beams, -1)[:, 0], scores[:, 0]
