"""Self-critical training of a captioner on cached maps, after its training by cross-entropy.

`pocketlens.distill.self_critical` makes its maps from pixels in every step. Here they are cached; reward, baseline and
loss are the same: CIDEr-D with the end of a caption as a word, the mean of the picture's other samples (Luo 2020), a
mean over tokens.

Letters: `B` pictures, `K` samples of a picture, `N` tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.flickr8k.captions import Captioning, CaptionLesson, CaptionTraining
from benchmarks.flickr8k.descent import Descent
from benchmarks.flickr8k.packed import packed_states
from benchmarks.flickr8k.search import Drawn, drawn, texts
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.cider_reward import CiderReward

__all__ = ["CriticalTraining", "Look", "train_critical"]


class CriticalTraining(CaptionTraining, frozen=True, kw_only=True):
    """How; `captions` are drawn for each picture.

    Attributes:
        pictures: steps x batch, all in all.
    """

    batch: int = 16
    learning_rate: float = 4e-5
    weight_decay: float = 0.0
    ema: float = 0.98
    pictures: int = 4096


class Look(NamedTuple):
    """What a step saw: mean CIDEr of the drawn captions in [0, 10], and their mean length in tokens."""

    reward: float
    length: float


def train_critical(
    model: Captioning,
    tokenizer: Tokenizer,
    lesson: CaptionLesson,
    references: Sequence[Sequence[str]],
    training: CriticalTraining,
    *,
    after_step: Callable[[int, Look], None] = lambda step, look: None,
) -> list[Look]:
    """Train `model` in place for the CIDEr of its captions; return what each step saw.

    Args:
        model: trained by cross-entropy.
        tokenizer: the model's.
        lesson: its maps are read.
        references: the human captions of each picture.
        training: how.
        after_step: called after each step with its number, from 1.
    """
    rng = np.random.default_rng(training.seed)
    generator = torch.Generator().manual_seed(training.seed)
    reward = CiderReward(references)
    count = len(references)
    steps = max(1, training.pictures // training.batch)
    descent = Descent(model.weights(), training, steps=steps)
    looks: list[Look] = []
    order = np.concatenate([rng.permutation(count) for _ in range(-(-steps * training.batch // count))])
    for step in range(steps):
        rows = order[step * training.batch :][: training.batch]
        view = rng.integers(training.views, size=len(rows))
        visual = model.visual(torch.from_numpy(lesson.maps[view, rows].astype(np.float32)))
        samples = drawn(model.decoder, visual.detach(), tokenizer, samples=training.captions, generator=generator)
        repeated = [references[row] for row in rows for _ in range(training.captions)]
        scores = reward.score(texts(tokenizer, samples.ids), repeated, samples.ended.tolist())
        descent.step(_loss(model, visual, samples, scores.reshape(len(rows), -1), tokenizer))
        looks.append(Look(float(scores.mean()), float((samples.ids != tokenizer.pad_id).sum(dim=1).float().mean())))
        after_step(step + 1, looks[-1])
    descent.finish()
    return looks


def _loss(
    model: Captioning, visual: Tensor, samples: Drawn, scores: NDArray[np.float64], tokenizer: Tokenizer
) -> Tensor:
    """Return the surrogate whose gradient is the policy's; `scores (B, K)`."""
    others = (scores.sum(axis=1, keepdims=True) - scores) / (scores.shape[1] - 1)
    advantage = torch.from_numpy((scores - others).reshape(-1)).float()
    ids = torch.cat([torch.full_like(samples.ids[:, :1], tokenizer.bos_id), samples.ids], dim=1)
    packed = packed_states(model.decoder, visual, ids)
    likely = model.decoder.logits(packed.states).log_softmax(dim=-1).gather(1, packed.targets[:, None])[:, 0]
    owner = (samples.ids != tokenizer.pad_id).nonzero()[:, 0]
    loss: Tensor = -(advantage[owner] * likely).mean()
    return loss
