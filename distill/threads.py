"""Threads that each run torch's operators alone.

The operators of a small model are short. Split over threads they cost a meeting each, which is dear when other
processes want the cores; several pieces of work beside each other, each on one thread, meet only at their ends. A
thread spends most of its time in operators, which release the interpreter lock.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["single_threads"]

_SWITCH_S = 1e-4


@contextmanager
def single_threads(count: int) -> Iterator[Executor]:
    """Give a pool of `count` threads; inside, torch runs each operator on one thread."""
    before = (torch.get_num_threads(), sys.getswitchinterval())
    torch.set_num_threads(1)
    # A thread that comes back from an operator waits for the interpreter lock at most this long.
    sys.setswitchinterval(_SWITCH_S)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before[0])
        sys.setswitchinterval(before[1])
