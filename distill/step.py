"""The gradients of one step, over copies, micro-batches and processes, as if one machine had seen the whole batch.

A batch is cut into equal parts. Each process has its share of them, each copy of the student one at a time. What a
picture says alone is divided by the size of the whole batch and summed. What pictures say about each other needs all
embeddings at once: they are gathered, the loss is taken on them as leaves, and each part goes on from the gradients of
its own rows. With more parts than copies the embeddings come from a first pass that keeps no graph, and the parts are
seen again with one (gradient caching, Gao et al. 2021): memory is that of one part, the loss that of the batch.

So a process sends embeddings and gradients, never pictures; labels are small and every process reads all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn

from pocketlens.core.errors import RecipeError
from pocketlens.distill.batches import Batch, TrainingSet, part_slices
from pocketlens.distill.distributed import Place
from pocketlens.distill.objective import Look, Objective
from pocketlens.distill.recipe import Recipe
from pocketlens.distill.replicas import Replicas

__all__ = ["Stepper", "Steps", "copies_of"]


def copies_of(recipe: Recipe, place: Place) -> int:
    """Return how many copies of the student this process runs: the recipe's threads, shared by all processes."""
    return max(1, recipe.threads // place.world)


class _Rows(NamedTuple):
    """The parts of this process, and where its rows stand in the batch."""

    parts: list[slice]
    own: slice


class Steps(Protocol):
    """Whatever makes the gradients of a step.

    Attributes:
        seen: figures of the last step that belong beside its terms into `metrics.csv`, always the same names.
    """

    seen: dict[str, float]

    def backward(self, step: int) -> dict[str, float]:
        """Leave the gradients of the step in the model and return the weighted terms by name."""
        ...


class Stepper:
    """Makes the gradients of a step.

    Args:
        recipe: the whole recipe.
        data: what to learn from.
        replicas: copies of the student with its training heads.
        place: which of several processes this is.
        pad_id: the tokenizer's.
        device: where the student is.

    Raises:
        RecipeError: the batch does not divide among processes, copies and micro-batches.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingSet,
        replicas: Replicas[Objective],
        place: Place,
        *,
        pad_id: int,
        device: torch.device,
    ) -> None:
        self.seen: dict[str, float] = {}
        self._settings, self._data, self._replicas, self._place = recipe.train, data, replicas, place
        self._pad_id, self._device = pad_id, device
        size, rounds = recipe.train.batch, recipe.train.micro_batches
        count = place.world * len(replicas) * rounds
        if count > 1 and (place.world > 1 or rounds > 1) and (size % count or size // count < 2):
            raise RecipeError(
                "train.batch",
                expected=f"a multiple of {count} ({place.world} processes x {len(replicas)} copies x {rounds} "
                f"micro-batches), at least {2 * count}",
                found=str(size),
                remedy="Change train.batch, train.micro_batches, threads or the number of processes.",
            )
        parts = part_slices(size, count)
        mine = len(parts) // place.world
        self._rows = _Rows(parts, slice(0, size))
        if place.world > 1:
            parts = parts[place.rank * mine : (place.rank + 1) * mine]
            self._rows = _Rows(parts, slice(parts[0].start, parts[-1].stop))

    def backward(self, step: int) -> dict[str, float]:
        """Leave the gradients of the step in the model and return the weighted terms by name."""
        size, own = self._settings.batch, self._rows.own
        self._replicas.model.zero_grad(set_to_none=True)
        whole = self._data.batch(step, size, pixels=None).to(self._device)
        mine = self._data.batch(step, size, pixels=own).to(self._device)
        parts = [mine.rows(slice(p.start - own.start, p.stop - own.start)) for p in self._rows.parts]
        compares = self._settings.losses.compares
        rounds = [parts[at : at + len(self._replicas)] for at in range(0, len(parts), len(self._replicas))]
        terms: dict[str, float] = {}
        if len(rounds) == 1:
            looks = self._look(rounds[0], whole)
            gradients, shared = self._compare([(look.images, look.texts) for look in looks], whole)
            _add(terms, looks)
            self._backward(looks, gradients)
        else:
            gradients, shared = [], {}
            if compares:
                with torch.no_grad(), self._still_statistics():
                    seen = [look for one in rounds for look in self._look(one, whole)]
                gradients, shared = self._compare([(look.images, look.texts) for look in seen], whole)
            for number, one in enumerate(rounds):
                looks = self._look(one, whole)
                _add(terms, looks)
                at = number * len(self._replicas)
                self._backward(looks, gradients[at : at + len(looks)] or [(None, None)] * len(looks))
        self._replicas.gather_gradients()
        return self._summed(terms) | shared

    def _look(self, parts: Sequence[Batch], whole: Batch) -> list[Look]:
        precision = self._settings.precision

        def look(model: Objective, part: Batch) -> Look:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return model.look(part, whole, self._settings, self._pad_id)

        return self._replicas.map(look, parts)

    def _compare(
        self, vectors: Sequence[tuple[Tensor, Tensor]], whole: Batch
    ) -> tuple[list[tuple[Tensor | None, Tensor | None]], dict[str, float]]:
        """Return the gradients of this process's embeddings, part by part, and the terms over all pairs."""
        world, own = self._place.world, self._rows.own
        images, texts = (torch.cat([one.detach().float() for one in pair]) for pair in zip(*vectors, strict=True))
        images, texts = self._gathered(images).requires_grad_(), self._gathered(texts).requires_grad_()
        terms = self._replicas.model.compare(images, texts, whole, self._settings)
        if not terms:
            return [(None, None)] * len(vectors), {}
        # Every process takes the same loss; a share each keeps what they all own (the temperature) counted once.
        (torch.stack(list(terms.values())).sum() / world).backward()
        gradients: list[tuple[Tensor | None, Tensor | None]] = []
        at = own.start
        for image, _ in vectors:
            rows = slice(at, at + len(image))
            gradients.append(tuple(None if v.grad is None else v.grad[rows] * world for v in (images, texts)))  # type: ignore[arg-type]
            at = rows.stop
        return gradients, {name: term.item() for name, term in terms.items()}

    def _backward(self, looks: Sequence[Look], gradients: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
        self._replicas.map(_backward_part, list(zip(looks, gradients, strict=True)))

    def _gathered(self, rows: Tensor) -> Tensor:
        if self._place.world == 1:
            return rows
        every = [torch.empty_like(rows) for _ in range(self._place.world)]
        distributed.all_gather(every, rows.contiguous())
        return torch.cat(every)

    def _summed(self, terms: dict[str, float]) -> dict[str, float]:
        """Return the terms summed over processes, after summing the gradients too."""
        if self._place.world == 1:
            return terms
        values = torch.tensor(list(terms.values()), dtype=torch.float64 if self._device.type == "cpu" else None)
        values = values.to(self._device)
        distributed.all_reduce(values)
        for weight in self._replicas.model.parameters():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad)
        return dict(zip(terms, values.tolist(), strict=True))

    @contextmanager
    def _still_statistics(self) -> Iterator[None]:
        """Let batch norms see batches without moving their running statistics."""
        norms = [
            module
            for model in self._replicas
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum


def _add(terms: dict[str, float], looks: Sequence[Look]) -> None:
    for look in looks:
        for name, term in look.terms.items():
            terms[name] = terms.get(name, 0.0) + term.item()


def _backward_part(_: Objective, part: tuple[Look, tuple[Tensor | None, Tensor | None]]) -> None:
    """Go back through one copy's graph: from its own terms, and from its embeddings' gradients."""
    look, gradients = part
    ends = [
        (vectors, gradient.to(vectors.dtype))
        for vectors, gradient in zip((look.images, look.texts), gradients, strict=True)
        if gradient is not None and vectors.requires_grad
    ]
    ends += [(term, torch.ones_like(term)) for term in look.terms.values()]
    torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
