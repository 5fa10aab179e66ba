"""A folder that is followed: what changes in it is in the store a moment later."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest

from pocketlens.core.errors import PictureError
from pocketlens.core.events import EmbeddingServed, Event
from pocketlens.runtime import IndexReport, Lens, Store, load, watch_folder
from pocketlens.runtime.watching import notifies

WAIT_S = 60.0


class Counter:
    def __init__(self) -> None:
        self.encoded = 0

    def emit(self, event: Event) -> None:
        if isinstance(event, EmbeddingServed):
            self.encoded += event.batch_size


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def lens(bundle_path: Path, counter: Counter) -> Lens:
    return load(bundle_path, threads=1, sink=counter)


@contextmanager
def _watched(lens: Lens, file: Path, folder: Path, poll_s: float | None) -> Iterator[Callable[[], IndexReport]]:
    """Watch `folder` in a thread; the value waits for the next report."""
    reports: Queue[IndexReport | BaseException] = Queue()
    stop = threading.Event()

    def follow() -> None:
        try:
            with Store.open(file, model_version=lens.model_version, dim=lens.dim) as store:
                watch_folder(lens, store, folder, report=reports.put, stop=stop, poll_s=poll_s)
        except PictureError as error:
            reports.put(error)

    def following() -> IndexReport:
        report = reports.get(timeout=WAIT_S)
        if isinstance(report, BaseException):
            raise report
        return report

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield following
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


WAYS = [
    pytest.param(0.05, id="polled"),
    pytest.param(None, id="told", marks=pytest.mark.skipif(not notifies(), reason="needs the extra watch")),
]


@pytest.mark.parametrize("poll_s", WAYS)
def test_new_changed_moved_and_deleted_files_follow(
    lens: Lens, counter: Counter, folder: Path, tmp_path: Path, pictures: list[bytes], poll_s: float | None
) -> None:
    file = tmp_path / "s"
    with _watched(lens, file, folder, poll_s) as following:
        assert following().added == 40
        assert counter.encoded == 40

        def put(name: str, data: bytes) -> None:
            # As most programs write: beside it, then renamed.
            (folder / ".draft").write_bytes(data)
            os.replace(folder / ".draft", folder / name)

        put("new.png", pictures[0][:-12] + b"\0" + pictures[0][-12:])
        report = following()
        assert (report.added + len(report.refused)) >= 1
        (folder / "new.png").unlink()
        assert following().removed + 1 >= 1

        encoded = counter.encoded
        os.replace(folder / "01.png", folder / "below" / "moved.png")
        moved = removed = 0
        while not (moved and removed):  # told of both ends of a move together or one by one
            report = following()
            moved, removed = moved + report.copied, removed + report.removed
        assert counter.encoded == encoded  # its bytes were known

        put("02.png", pictures[5])
        assert following().added == 1
        with Store.open(file) as store:
            paths = set(store.known(folder))
            assert str(folder / "below" / "moved.png") in paths
            assert str(folder / "01.png") not in paths
            assert len(paths) == 40


@pytest.mark.parametrize("poll_s", WAYS)
def test_a_folder_that_goes_away_ends_the_watch_with_an_error(
    lens: Lens, folder: Path, tmp_path: Path, poll_s: float | None
) -> None:
    with _watched(lens, tmp_path / "s", folder, poll_s) as following:
        assert following().added == 40
        os.replace(folder, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "x.png").write_bytes(b"")
        if poll_s is None:
            return  # the system says nothing more of a folder that was renamed; the next look of its own notices
        with pytest.raises(PictureError, match="nothing at that path"):
            following()


def test_a_time_between_looks_must_be_positive(lens: Lens, folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    with (
        Store.open(tmp_path / "s", model_version=lens.model_version, dim=lens.dim) as store,
        pytest.raises(ValueError, match="poll_s"),
    ):
        watch_folder(lens, store, folder, report=print, stop=stop, poll_s=0)
