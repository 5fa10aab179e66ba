"""Self-critical sequence training: the captioner learns from the CIDEr of its own captions.

Captions are drawn from the student, scored, and made likelier or less likely by how much better they are than a
baseline: the picture's greedy caption (Rennie et al. 2017) or the mean of its other samples (Luo 2020). Only the
captioner learns, with the adapter that makes its visual tokens; backbone, projection and text tower stand still, so
the embeddings stay what they were, to the bit.

The loop, with average, checkpoints, resume and curves, is that of `pocketlens.distill.train`. `metrics.csv` has the
columns `reward`, `baseline` (CIDEr in [0, 10], see `cider_reward`) and `length` (tokens) beside the loss. The loss is
the surrogate whose gradient is the policy's: its value says little.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from pocketlens.core.errors import RecipeError
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet, part_slices
from pocketlens.distill.cider_reward import CiderReward
from pocketlens.distill.distributed import Place
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.step import Steps
from pocketlens.distill.students.student import Student
from pocketlens.distill.train import Progress, train

__all__ = ["drawn_captions", "train_self_critical"]

_LEARNS: Final = ("caption_decoder.", "image_encoder.adapter", "image_encoder.positions")


def train_self_critical(
    recipe: Recipe,
    data: TrainingSet,
    tokenizer: Tokenizer,
    student: Student,
    *,
    run: Path,
    progress: Callable[[Progress], None] | None = None,
) -> Student:
    """Train `student` for CIDEr as `recipe.self_critical` says and return what became of it.

    The references of a picture are its human captions; the teacher's where it has none.

    Args:
        recipe: the whole recipe.
        data: pictures and captions.
        tokenizer: the student's.
        student: in eval mode; it is not changed.
        run: the run's folder; it gets what `train` writes.
        progress: told after every step.

    Raises:
        RecipeError: one sample cannot be compared with others, or the batch does not divide among the processes.
        TrainingError: see `train`.
        StorageFull: the disk is full; the last good checkpoint is kept.
    """
    settings = recipe.self_critical
    if settings.baseline == "other" and settings.samples < 2:
        raise RecipeError(
            "self_critical.samples",
            expected="at least 2 with self_critical.baseline = 'other'",
            found=str(settings.samples),
            remedy="Draw more samples, or compare with the greedy caption.",
        )
    phase = _phase(recipe)
    learner = copy.deepcopy(student)
    learner.ranges = {}
    for name, weight in learner.named_parameters():
        weight.requires_grad_(name.startswith(_LEARNS))
    reward = CiderReward(data.references(row) for row in range(len(data)))

    def steps(replicas: Replicas[Objective], place: Place, device: torch.device) -> Steps:
        return _SelfCritical(phase, data, tokenizer, reward, replicas, place, device)

    def finish(trained: Student) -> Student:
        return trained.requires_grad_(True)

    return train(
        phase, data, tokenizer, teacher_dim=1, run=run, start=learner, progress=progress, steps=steps, finish=finish
    )


def _phase(recipe: Recipe) -> Recipe:
    """Return the recipe with the steps and the rate of this phase; a rate this low needs no decay."""
    settings = recipe.self_critical
    changed = msgspec.structs.replace(
        recipe.train, steps=settings.steps, learning_rate=settings.learning_rate, weight_decay=0.0, patience=0
    )
    return msgspec.structs.replace(recipe, train=changed)


class Drawn(NamedTuple):
    """Captions as ids.

    Attributes:
        ids: `(B, N)` int32, the end token included; the padding's id behind it.
        ended: `(B,)` bool, whether a caption came to its end token.
    """

    ids: Tensor
    ended: Tensor


@torch.no_grad()
def drawn_captions(
    student: Student, visual: Tensor, tokenizer: Tokenizer, *, generator: torch.Generator | None
) -> Drawn:
    """Return one caption for each of `visual (B, V, E)`: drawn token by token with `generator`, greedy without.

    Padding, start and unknown token are never drawn: they are no text.
    """
    step, batch = student.caption_decode(), len(visual)
    cache = student.caption_prefill()(visual)
    token = torch.full((batch,), tokenizer.bos_id, dtype=torch.int32, device=visual.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=visual.device)
    rows: list[Tensor] = []
    for offset in range(student.config.caption_tokens):
        position = torch.full_like(token, student.caption_decoder.visual_tokens + offset)
        logits, cache = step(token, position, cache)
        if generator is None:
            chosen = logits.argmax(dim=-1)
        else:
            logits[:, [tokenizer.pad_id, tokenizer.bos_id]] = -torch.inf
            # drawn on the CPU, so that a seed means the same captions there and on a GPU
            weights = torch.softmax(logits.float(), dim=-1).cpu()
            chosen = torch.multinomial(weights, 1, generator=generator)[:, 0].to(visual.device)
        token = torch.where(ended, tokenizer.pad_id, chosen).to(torch.int32)
        rows.append(token)
        ended |= token == tokenizer.eos_id
        if bool(ended.all()):
            break
    return Drawn(torch.stack(rows, dim=1), ended)


class _Part(NamedTuple):
    """The pictures of one copy: pixels, references, and the number that its draws are seeded with."""

    pixels: Tensor
    references: list[tuple[str, ...]]
    number: int


class _Answer(NamedTuple):
    loss: Tensor
    reward: float
    baseline: float
    length: float


class _SelfCritical:
    """Makes the gradients of a step; see `Steps`."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingSet,
        tokenizer: Tokenizer,
        reward: CiderReward,
        replicas: Replicas[Objective],
        place: Place,
        device: torch.device,
    ) -> None:
        self.seen: dict[str, float] = {}
        self._recipe, self._data, self._tokenizer, self._reward = recipe, data, tokenizer, reward
        self._replicas, self._place, self._device = replicas, place, device
        size, count = recipe.train.batch, place.world * len(replicas)
        self._parts = part_slices(size, count)
        if place.world > 1 and len(self._parts) % place.world:
            raise RecipeError(
                "train.batch",
                expected=f"at least {2 * count} pictures for {place.world} processes x {len(replicas)} copies",
                found=str(size),
                remedy="Change train.batch, threads or the number of processes.",
            )

    def backward(self, step: int) -> dict[str, float]:
        """Leave the gradients of the step in the model and return the loss by name."""
        self._replicas.model.zero_grad(set_to_none=True)
        share = len(self._parts) // self._place.world
        own = range(self._place.rank * share, (self._place.rank + 1) * share)
        parts = [self._part(step, number) for number in own]
        answers = self._replicas.map(lambda model, part: self._look(model, part, step), parts)
        self._replicas.gather_gradients()
        size = self._recipe.train.batch
        shares = np.array([len(part.references) / size for part in parts])
        figures = np.array([[a.loss.item(), a.reward, a.baseline, a.length] for a in answers])
        # The loss is a share of the batch's already, the others are means over a part.
        sums = np.concatenate([figures[:, :1].sum(axis=0), shares @ figures[:, 1:]])
        loss, *others = self._summed(sums)
        self.seen = dict(zip(("reward", "baseline", "length"), others, strict=True))
        return {"self_critical": loss}

    def _part(self, step: int, number: int) -> _Part:
        where, size = self._parts[number], self._recipe.train.batch
        batch = self._data.batch(step, size, pixels=where)
        rows = self._data.rows(step, size)[where]
        references = [self._data.references(row) for row in rows.tolist()]
        return _Part(batch.pixels.to(self._device), references, number)

    def _look(self, model: Objective, part: _Part, step: int) -> _Answer:
        settings, student, tokenizer = self._recipe.self_critical, model.student, self._tokenizer
        image = student.image_encoder.eval()  # batch norms stand still too
        with torch.no_grad():
            features = image.features(part.pixels)
        visual = image.heads(features)[1]
        count, many = len(part.references), settings.samples
        generator = torch.Generator().manual_seed(_seed(self._recipe.seed, step, part.number))
        repeated = visual.repeat_interleave(many, dim=0)
        drawn = drawn_captions(student, repeated, tokenizer, generator=generator)
        references = [texts for texts in part.references for _ in range(many)]
        scores = self._scores(drawn, references).reshape(count, many)
        greedy = None
        if settings.baseline == "greedy":
            greedy = self._scores(drawn_captions(student, visual, tokenizer, generator=None), part.references)
        baseline = _baseline(scores, greedy)
        advantage = torch.from_numpy((scores - baseline).reshape(-1)).to(self._device, torch.float32)
        start = torch.full_like(drawn.ids[:, :1], tokenizer.bos_id)
        logits = student.caption_decoder(repeated, torch.cat([start, drawn.ids[:, :-1]], dim=1))
        logprobs = torch.log_softmax(logits, dim=-1).gather(2, drawn.ids[:, :, None].to(torch.int64))[:, :, 0]
        real = (drawn.ids != tokenizer.pad_id).to(logprobs.dtype)
        # A mean over tokens, as the papers' code has it, so that the rate does not depend on the captions' length.
        each = -(advantage[:, None] * logprobs * real).sum() / real.sum()
        loss = each * (count / self._recipe.train.batch)
        loss.backward()
        return _Answer(loss.detach(), float(scores.mean()), float(baseline.mean()), float(real.sum(dim=1).mean()))

    def _scores(self, drawn: Drawn, references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        pad = self._tokenizer.pad_id
        texts = [self._tokenizer.decode([one for one in ids if one != pad]) for ids in drawn.ids.tolist()]
        return self._reward.score(texts, references, drawn.ended.tolist())

    def _summed(self, figures: NDArray[np.float64]) -> list[float]:
        """Return the figures summed over processes, after summing the gradients too."""
        if self._place.world == 1:
            return [float(value) for value in figures]
        values = torch.from_numpy(figures).to(self._device, torch.float32)
        distributed.all_reduce(values)
        for weight in self._replicas.model.parameters():
            if weight.requires_grad and weight.grad is not None:
                distributed.all_reduce(weight.grad)
        return [float(value) for value in values]


def _baseline(scores: NDArray[np.float64], greedy: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return what `scores (B, K)` are compared with, `(B, K)`: the greedy captions' `(B,)`, or the other samples'."""
    if greedy is not None:
        return np.broadcast_to(greedy[:, None], scores.shape)
    others: NDArray[np.float64] = (scores.sum(axis=1, keepdims=True) - scores) / (scores.shape[1] - 1)
    return others


def _seed(seed: int, step: int, part: int) -> int:
    """Return a seed of its own for each part of each step."""
    return int(np.random.SeedSequence((seed, 1 << 41, step, part)).generate_state(1, np.uint64)[0] >> 1)
