"""Copies of a model that share one step, each with its part of the batch in a thread of its own.

On an idle CPU this is as fast as splitting each operator over the threads, 1.6 times one thread on two cores. Beside
other work it is faster: threads that meet at the end of every operator wait for the slowest one, copies meet twice a
step (benchmarks/training_threads.py; figures in docs/LOG.md).

The sum of the parts' gradients is taken in a fixed order, so a run is reproducible for its number of copies.
Each copy's batch norm sees its own part of the batch, as under data-parallel training without synchronised norms.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

import torch
from torch import distributed, nn

__all__ = ["Replicas"]

# Of batch norms, and of the activations of graphs with simulated quantization.
_STATISTICS = ("running_mean", "running_var", "min_val", "max_val")

ModelT = TypeVar("ModelT", bound=nn.Module)
PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


class Replicas(Generic[ModelT]):
    """The model and `count - 1` copies of it.

    Args:
        model: the model; the optimizer holds its parameters.
        count: how many work at once, at least 1.
        pool: where they work: `pocketlens.distill.threads.single_threads`.
    """

    def __init__(self, model: ModelT, count: int, pool: Executor) -> None:
        self._models = [model, *(copy.deepcopy(model) for _ in range(count - 1))]
        self._weights = [list(one.parameters()) for one in self._models]
        self._statistics = [
            [buffer for name, buffer in one.named_buffers() if name.endswith(_STATISTICS)] for one in self._models
        ]
        self._pool = pool

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[ModelT]:
        return iter(self._models)

    @property
    def model(self) -> ModelT:
        """The one that the optimizer changes."""
        return self._models[0]

    def map(self, work: Callable[[ModelT, PartT], ResultT], parts: Sequence[PartT]) -> list[ResultT]:
        """Return `work(copy, part)` for each part, all at once; as many parts as copies, or fewer."""
        return list(self._pool.map(work, self._models[: len(parts)], parts))

    def gather_gradients(self) -> None:
        """Add the copies' gradients to the model's, and forget them."""
        for others in self._weights[1:]:
            for weight, other in zip(self._weights[0], others, strict=True):
                if other.grad is not None:
                    weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
                    other.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """Give every copy the model's weights and the mean of all running statistics, over processes too."""
        together = distributed.is_available() and distributed.is_initialized()
        if len(self) == 1 and not together:
            return
        for buffers in zip(*self._statistics, strict=True):
            mean = torch.stack(buffers).mean(dim=0)
            if together:
                distributed.all_reduce(mean)
                mean /= distributed.get_world_size()
            for buffer in buffers:
                buffer.copy_(mean)
        for others in self._weights[1:]:
            for other, weight in zip(others, self._weights[0], strict=True):
                other.copy_(weight)
