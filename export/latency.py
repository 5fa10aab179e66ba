"""Wall time of graphs, measured in turns so that whatever else the machine does hits all alike."""

import os
import platform
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final, TypeVar

import numpy as np

from pocketlens.core.bundle import Latency

__all__ = ["THREADS", "machine_name", "measure_in_turns"]

THREADS: Final = 1
_WARM_UP: Final = 10

_K = TypeVar("_K")


def measure_in_turns(calls: Mapping[_K, Callable[[], object]], *, runs: int) -> dict[_K, Latency]:
    """Return the latency of each of `calls`, timed `runs` times in turns.

    Calls are expected to use `THREADS` threads; the caller sees to that when it opens engines.
    """
    order = list(calls)
    times: dict[_K, list[float]] = {key: [] for key in order}
    for turn in range(_WARM_UP + runs):
        # Every other turn runs backwards, so that nobody always follows the same neighbour.
        for key in order if turn % 2 else reversed(order):
            started = perf_counter()
            calls[key]()
            elapsed_ms = (perf_counter() - started) * 1000
            if turn >= _WARM_UP:
                times[key].append(elapsed_ms)
    machine = machine_name()
    return {
        key: Latency(
            p50_ms=float(np.quantile(values, 0.5)),
            p90_ms=float(np.quantile(values, 0.9)),
            runs=runs,
            threads=THREADS,
            machine=machine,
        )
        for key, values in times.items()
    }


def machine_name() -> str:
    """Return architecture and number of cores; nothing that names this computer or its owner."""
    return f"{platform.machine()}, {os.cpu_count() or 1} cores"
