"""Overlaps the preparing of items with the work on batches of them: order kept, memory bounded, any number of items.

A few threads share one queue. Each takes the next item and prepares it; the thread that prepares the
last item of a batch goes on to finish that batch, while the others prepare items of the next one. So no
thread waits for another as long as there are items, whatever the two steps cost. Both steps must give
up the interpreter's lock while they work, as Pillow and ONNX Runtime do.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

__all__ = ["available_cores", "overlapped"]

_Item = TypeVar("_Item")
_Prepared = TypeVar("_Prepared")
_Result = TypeVar("_Result")

# Batches that are being worked on: one is finished by a thread while the others prepare the next.
_SPARE_BATCHES: Final = 1


def available_cores() -> int:
    """Return how many CPU cores this process may use, at least 1."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


class _Batch(Generic[_Prepared, _Result]):
    """One batch under way; `result` is set when its last item is prepared and the batch finished."""

    def __init__(self, finish: Callable[[list[_Prepared]], _Result]) -> None:
        self.result: Future[_Result] = Future()
        self._finish = finish
        self._slots: list[_Prepared | None] = []
        self._missing = 1  # for the end of the batch, which `close` tells
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    def open_slot(self) -> int:
        with self._lock:
            self._missing += 1
        self._slots.append(None)
        return len(self._slots) - 1

    def prepare(self, work: Callable[[], _Prepared], slot: int) -> None:
        """Fill the slot, and finish the batch where nothing else is missing. Runs in a worker."""
        try:
            self._slots[slot] = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the results are read
            self._fail(error)
        self._one_less()

    def close(self) -> None:
        """Say that no further slot is opened. Runs in a worker: it may be what the batch waits for."""
        self._one_less()

    def _one_less(self) -> None:
        with self._lock:
            self._missing -= 1
            complete = self._missing == 0
        if not complete or self.result.done():
            return
        try:
            # Complete: every slot holds what `work` returned.
            self.result.set_result(self._finish(self._slots))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - likewise
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.result.done():
                self.result.set_exception(error)


def overlapped(
    items: Iterable[_Item],
    prepare: Callable[[int, _Item], _Prepared],
    finish: Callable[[list[_Prepared]], _Result],
    *,
    batch_size: int,
    threads: int,
) -> Generator[_Result]:
    """Yield `finish` of each batch of prepared items, in the order of the items.

    With one thread, all is done in the caller's, and no item is taken before the results of the batch
    before it were. With more, up to `threads` + 1 batches are read ahead. `items` is always read in
    the caller's thread, so a generator needs no lock.

    Closing the generator, or an error, stops the threads: each ends the item that it is at, and nothing
    that was read ahead is begun. An error of `prepare` or `finish` is raised in the place of its batch.
    An error of `items` is raised after the results of all items that were read.

    Args:
        items: may be endless.
        prepare: called with the position of an item, from 0, and the item.
        finish: called with what `prepare` returned for the items of one batch, never an empty one.
        batch_size: items of a batch, at least 1; the last batch may have fewer.
        threads: how many threads work, at least 1.

    Raises:
        ValueError: `batch_size` or `threads` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if threads == 1:
        return _in_turn(items, prepare, finish, batch_size)
    return _in_threads(items, prepare, finish, batch_size, threads)


def _in_turn(
    items: Iterable[_Item],
    prepare: Callable[[int, _Item], _Prepared],
    finish: Callable[[list[_Prepared]], _Result],
    batch_size: int,
) -> Generator[_Result]:
    batch: list[_Prepared] = []
    for index, item in enumerate(items):
        # Prepared one by one: of a batch, only what was prepared is held, not the items.
        batch.append(prepare(index, item))
        if len(batch) == batch_size:
            yield finish(batch)
            batch = []
    if batch:
        yield finish(batch)


def _in_threads(
    items: Iterable[_Item],
    prepare: Callable[[int, _Item], _Prepared],
    finish: Callable[[list[_Prepared]], _Result],
    batch_size: int,
    threads: int,
) -> Generator[_Result]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pocketlens")
    waiting: deque[_Batch[_Prepared, _Result]] = deque()
    source = enumerate(items)
    failure: Exception | None = None
    ended = False
    try:
        while not ended:
            batch: _Batch[_Prepared, _Result] = _Batch(finish)
            while len(batch) < batch_size:
                try:
                    index, item = next(source)
                except StopIteration:
                    ended = True
                    break
                except Exception as error:  # noqa: BLE001 - the caller's own, raised again below
                    failure, ended = error, True
                    break
                slot = batch.open_slot()
                pool.submit(batch.prepare, _call(prepare, index, item), slot)
                del item  # a large picture in memory is not held twice
            if len(batch):
                pool.submit(batch.close)
                waiting.append(batch)
            while waiting and (waiting[0].result.done() or len(waiting) > threads + _SPARE_BATCHES):
                yield waiting.popleft().result.result()
        while waiting:
            yield waiting.popleft().result.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure


def _call(prepare: Callable[[int, _Item], _Prepared], index: int, item: _Item) -> Callable[[], _Prepared]:
    return lambda: prepare(index, item)
