"""Where this process stands among those that `torchrun` started; alone without it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import distributed

from pocketlens.core.errors import TrainingError

__all__ = ["Place", "barrier", "joined", "place"]


class Place(NamedTuple):
    """Rank of this process, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def place() -> Place:
    """Return this process's place, from the environment that `torchrun` sets.

    Raises:
        TrainingError: the environment is no place.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise TrainingError(
            "environment RANK and WORLD_SIZE",
            expected="numbers as torchrun sets them, RANK below WORLD_SIZE",
            found=f"{rank!r} and {world!r}",
            remedy="Start with torchrun, or unset both.",
        )
    return Place(int(rank), int(world))


@contextmanager
def joined() -> Iterator[Place]:
    """Join the group of processes for the length of the block: NCCL on CUDA, Gloo elsewhere; nothing when alone."""
    here = place()
    if here.world == 1 or distributed.is_initialized():
        yield here
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield here
    finally:
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here; return at once when alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
