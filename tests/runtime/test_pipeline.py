"""Overlapped work: order, bounds, errors in their place, and threads that end."""

import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import EngineError, PictureError
from pocketlens.core.events import EmbeddingServed, Event, PictureRefused
from pocketlens.runtime import Lens, Refusal, load
from pocketlens.runtime.pipeline import available_cores, overlapped


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pocketlens")]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_every_item_comes_once_and_in_order(threads: int, batch_size: int, count: int) -> None:
    batches = list(
        overlapped(range(count), lambda index, item: (index, item * item), list, batch_size=batch_size, threads=threads)
    )
    assert [len(batch) for batch in batches] == [
        len(range(count)[at : at + batch_size]) for at in range(0, count, batch_size)
    ]
    assert list(itertools.chain(*batches)) == [(index, index * index) for index in range(count)]
    assert not _threads()


def test_a_slow_item_holds_back_what_is_behind_it_and_nothing_else() -> None:
    gate = threading.Event()
    later = threading.Event()

    def prepare(index: int, item: int) -> int:
        if index == 0:
            assert gate.wait(60)
        if index == 5:
            later.set()
        return item

    batches = overlapped(range(6), prepare, list, batch_size=1, threads=2)
    seen: list[list[int]] = []
    reader = threading.Thread(target=lambda: seen.extend(batches))
    reader.start()
    # Others go on meanwhile, up to the bound: three batches are under way, the fourth waits to be read.
    assert not later.wait(0.2)
    assert seen == []
    gate.set()
    reader.join(60)
    assert seen == [[index] for index in range(6)]


def test_an_endless_source_is_read_a_bounded_way_ahead() -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    batches = overlapped(source(), lambda _, item: item, list, batch_size=4, threads=3)
    furthest = 0
    for number, batch in enumerate(itertools.islice(batches, 500)):
        assert batch[0] == number * 4 + 1
        furthest = max(furthest, taken - batch[-1])
    assert furthest <= 4 * (3 + 1 + 1)
    batches.close()
    assert not _threads()


def test_the_source_is_read_in_the_callers_thread() -> None:
    readers: set[threading.Thread] = set()
    workers: set[threading.Thread] = set()

    def source() -> Iterator[int]:
        for item in range(40):
            readers.add(threading.current_thread())
            yield item

    def prepare(_: int, item: int) -> int:
        workers.add(threading.current_thread())
        return item

    list(overlapped(source(), prepare, list, batch_size=2, threads=2))
    assert readers == {threading.current_thread()}
    assert threading.current_thread() not in workers


def test_closing_early_ends_the_threads_and_begins_nothing_that_was_read_ahead() -> None:
    started: list[int] = []
    gate = threading.Event()

    def prepare(index: int, item: int) -> int:
        started.append(index)
        if index >= 2:
            assert gate.wait(60)
        return item

    batches = overlapped(itertools.count(), prepare, list, batch_size=2, threads=2)
    assert next(batches) == [0, 1]
    threading.Timer(0.1, gate.set).start()
    batches.close()
    assert not _threads()
    assert max(started) <= 2 + 2 * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_step_stands_in_the_place_of_its_batch(threads: int) -> None:
    def prepare(_: int, item: int) -> int:
        if item == 13:
            raise EngineError("graph", expected="x", found="y", remedy="z.")
        return item

    seen: list[int] = []
    batches = overlapped(itertools.count(), prepare, list, batch_size=5, threads=threads)
    with pytest.raises(EngineError):
        seen.extend(item for batch in batches for item in batch)
    assert seen == list(range(10))
    assert not _threads()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_finishing_is_raised_too(threads: int) -> None:
    def finish(batch: list[int]) -> int:
        return 10 // (2 - batch[0])

    results = overlapped(itertools.count(), lambda _, item: item, finish, batch_size=1, threads=threads)
    assert [next(results), next(results)] == [5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not _threads()


def test_an_error_of_the_source_comes_after_the_results_of_what_it_gave() -> None:
    def source() -> Iterator[int]:
        yield from range(7)
        raise OSError("the disk is gone")

    seen: list[int] = []
    batches = overlapped(source(), lambda _, item: item, list, batch_size=3, threads=2)
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(item for batch in batches for item in batch)
    assert seen == list(range(7))


@pytest.mark.parametrize("options", [{"batch_size": 0, "threads": 1}, {"batch_size": 1, "threads": 0}])
def test_numbers_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        overlapped([1], lambda _, item: item, list, **options)


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


class Recorder:
    """A sink that keeps what it gets, and by which thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[threading.Thread] = set()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread())


@pytest.fixture(scope="module")
def lens(bundle_path: Path) -> Lens:
    return load(bundle_path, threads=3)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_threads_give_the_vectors_that_one_thread_gives(lens: Lens, pictures: list[bytes], batch_size: int) -> None:
    alone = list(lens.embed_images(pictures, threads=1))
    together = list(lens.embed_images(pictures, batch_size=batch_size))
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_refusals_keep_their_places_and_events_come_in_order_in_the_readers_thread(
    bundle_path: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    sink = Recorder()
    lens = load(bundle_path, threads=3, sink=sink)
    sink.events.clear()
    mixed: list[object] = list(pictures)
    for at in (0, 7, 8, 9, 10, 39):
        mixed[at] = tmp_path / f"missing-{at}.jpg" if at % 2 else b"no picture"
    results = list(lens.embed_images(mixed, batch_size=4))  # type: ignore[arg-type]
    refused = {r.index: r.error.kind for r in results if isinstance(r, Refusal)}
    assert refused == {
        0: "unknown_type",
        7: "missing",
        8: "unknown_type",
        9: "missing",
        10: "unknown_type",
        39: "missing",
    }
    assert [r.source for r in results if isinstance(r, Refusal)][1] == str(tmp_path / "missing-7.jpg")
    assert sum(e.batch_size for e in sink.events if isinstance(e, EmbeddingServed)) == 34
    kinds = [e.kind for e in sink.events if isinstance(e, PictureRefused)]
    assert kinds == list(refused.values())
    assert sink.threads == {threading.current_thread()}


def test_what_the_caller_reuses_or_closes_is_read_in_time(lens: Lens, pictures: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(data)
    buffer = io.BytesIO()
    frame = np.zeros((12, 12, 3), np.uint8)

    def reused() -> Iterator[object]:
        for number, data in enumerate(pictures):
            if number % 3 == 0:
                buffer.seek(0)
                buffer.truncate()
                buffer.write(data)
                buffer.seek(0)
                yield buffer
            elif number % 3 == 1:
                with Image.open(io.BytesIO(data)) as image:
                    frame[:] = np.asarray(image)
                yield frame
            else:
                with Image.open(tmp_path / f"{number}.png") as image:
                    yield image

    expected = list(lens.embed_images(pictures, threads=1))
    np.testing.assert_allclose(list(lens.embed_images(reused(), batch_size=2)), expected, atol=1e-6)  # type: ignore[arg-type]


def test_max_pixels_is_the_callers_limit(lens: Lens, pictures: list[bytes]) -> None:
    refused = next(iter(lens.embed_images(pictures[:1], max_pixels=12 * 12 - 1)))
    assert isinstance(refused, Refusal)
    assert refused.error.kind == "too_many_pixels"
    assert not isinstance(next(iter(lens.embed_images(pictures[:1], max_pixels=12 * 12))), Refusal)
    with pytest.raises(ValueError, match="max_pixels"):
        lens.embed_images(pictures, max_pixels=0)


def test_closing_the_vectors_ends_the_threads(lens: Lens, pictures: list[bytes]) -> None:
    vectors = lens.embed_images(itertools.cycle(pictures), batch_size=2)
    assert not isinstance(next(vectors), Refusal)
    vectors.close()  # type: ignore[attr-defined]
    assert not _threads()


def test_a_graph_that_fails_in_a_thread_is_one_typed_error(bundle_copy: Path, pictures: list[bytes]) -> None:
    lens = load(bundle_copy, threads=2, precision="fp32", engine="onnxruntime")
    for graph in bundle_copy.rglob("image_encoder.onnx"):
        graph.write_bytes(b"not a graph any more")
    with pytest.raises(EngineError):
        list(lens.embed_images(pictures))
    assert not _threads()


def test_read_embeddings_carry_the_hash_of_what_was_read(lens: Lens, pictures: list[bytes]) -> None:
    from hashlib import sha256

    def read(number: int) -> bytes:
        if number == 3:
            raise PictureError("x", kind="missing", expected="a", found="b", remedy="c.")
        return b"no picture" if number == 5 else pictures[number]

    results = list(lens.embed_read(range(12), read))
    assert [r.sha256 for r in results[:3]] == [sha256(data).hexdigest() for data in pictures[:3]]
    assert results[3].sha256 is None
    assert results[5].sha256 == sha256(b"no picture").hexdigest()
    assert [at for at, r in enumerate(results) if isinstance(r.outcome, Refusal)] == [3, 5]
    np.testing.assert_allclose(results[7].outcome, lens.embed_image(pictures[7]), atol=1e-6)  # type: ignore[arg-type]
