"""Several decoding processes side by side: for throughput, one for each core."""

import os
import queue
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import Picture
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker.protocol import WorkerLimits
from pocketlens.runtime.picture_worker.worker import PictureWorker

__all__ = ["PicturePool"]

_AHEAD: Final = 2


class PicturePool:
    """Up to `workers` decoding processes, started as they are needed.

    Safe from several threads and after a fork. Use as a context manager or call `close`.

    Attributes:
        workers: the `PictureWorker`s.
    """

    def __init__(self, workers: int | None = None, *, limits: WorkerLimits = WorkerLimits()) -> None:  # noqa: B008
        """Make the pool; no process is started yet.

        Args:
            workers: how many processes at most; by default one for each processor that this one may use.
            limits: what each of them may use.
        """
        count = _processors() if workers is None else workers
        if count < 1:
            raise ValueError(f"workers: expected at least 1, found {workers}")
        self.workers = tuple(PictureWorker(limits) for _ in range(count))
        self._fill()
        _ALIVE.add(self)

    def _fill(self) -> None:
        # Last in, first out: pictures that come one by one keep one process busy and start no second one.
        self._idle: queue.LifoQueue[PictureWorker] = queue.LifoQueue()
        for worker in self.workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. A picture asked for afterwards is an `EngineError`."""
        for worker in self.workers:
            worker.close()

    def prepare(self, picture: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Return what `PictureWorker.prepare` returns, from a worker that is idle; waits for one."""
        worker = self._idle.get()
        try:
            return worker.prepare(picture, spec)
        finally:
            self._idle.put(worker)

    def prepare_all(
        self, pictures: Iterable[Picture], spec: PreprocessSpec
    ) -> Iterator[NDArray[np.uint8] | PictureError]:
        """Yield for each picture, in order, its pixels or the error with which it was refused.

        Holds two pictures for each worker at a time, whatever the length of `pictures`.

        Raises:
            EngineError: no decoding process can be started, or the pool is closed.
        """
        waiting: deque[Future[NDArray[np.uint8] | PictureError]] = deque()
        with ThreadPoolExecutor(len(self.workers), "pictures") as threads:
            try:
                for picture in pictures:
                    waiting.append(threads.submit(self._prepared, picture, spec))
                    if len(waiting) >= _AHEAD * len(self.workers):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _prepared(self, picture: Picture, spec: PreprocessSpec) -> NDArray[np.uint8] | PictureError:
        try:
            return self.prepare(picture, spec)
        except PictureError as error:
            return error


_ALIVE: "weakref.WeakSet[PicturePool]" = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_ALIVE):
        pool._fill()  # a thread of the other process may have held some


os.register_at_fork(after_in_child=_after_fork)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
