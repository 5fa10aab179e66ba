"""What both halves of the student's training share: the optimizer, the mean of the weights, dropout in the blocks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pocketlens.distill.recipe import LossWeights
from pocketlens.distill.schedule import warmup_cosine
from pocketlens.distill.students.blocks import Block

__all__ = ["Descent", "StudentTraining", "dropping"]


class StudentTraining(msgspec.Struct, frozen=True, kw_only=True):
    """How one half of the student is trained.

    Attributes:
        batch: captions (towers) or pictures (captioner) a step.
        dropout: of the feature map, and of what attention and feed-forward add.
        word_dropout: share of the text tower's tokens that become unknown.
        smoothing: of the captioner's targets.
        tokens: captions are cut there, in training only.
        temperature: the teacher's similarities are divided by it.
        ema: decay of the mean of the weights, which is what is kept.
        views: how many views of a picture are drawn from.
        losses: weights of the terms; 0 switches one off.
    """

    batch: int = 1024
    epochs: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    word_dropout: float = 0.1
    smoothing: float = 0.1
    tokens: int = 20
    temperature: float = 0.03
    ema: float = 0.97
    views: int = 4
    losses: LossWeights = LossWeights()
    seed: int = 0


class Descent:
    """AdamW with warm-up and half a cosine, clipped, and the running mean of the weights."""

    def __init__(self, weights: Sequence[Tensor], training: StudentTraining, *, steps: int) -> None:
        self.steps, self._weights, self._training, self._done = steps, list(weights), training, 0
        groups: list[dict[str, Any]] = [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self._average = [weight.detach().clone() for weight in weights]

    def step(self, loss: Tensor) -> float:
        """Go one step down `loss`; return its value."""
        rate = warmup_cosine(
            self._done, total=self.steps, warmup=max(1, self.steps // 12), peak=self._training.learning_rate
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._done += 1
        decay = min(self._training.ema, self._done / (self._done + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        return loss.item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the mean weights in for a while."""
        kept = [weight.detach().clone() for weight in self._weights]
        self.finish()
        yield
        with torch.no_grad():
            for weight, value in zip(self._weights, kept, strict=True):
                weight.copy_(value)

    def finish(self) -> None:
        """Put the mean weights in."""
        with torch.no_grad():
            for weight, mean in zip(self._weights, self._average, strict=True):
                weight.copy_(mean)


@contextmanager
def dropping(blocks: Iterable[Block], dropout: nn.Dropout) -> Iterator[None]:
    """Apply `dropout` to what attention and feed-forward of `blocks` add, while they train."""

    def drop(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        dropped: Tensor = dropout(output) if module.training else output
        return dropped

    hooks = [part.register_forward_hook(drop) for block in blocks for part in (block.attention, block.feed)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
