"""The log is declared, private, bounded, coarse, survives kills and full disks, and can be deleted."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlens.core.errors import TelemetryError
from pocketlens.core.events import CaptionServed, FallbackDecided, PictureRefused
from pocketlens.telemetry import EventLog, LoggedEvent, load_schema, purge, read

DAY = date(2026, 11, 22)
SCHEMA = load_schema()
REFUSED = PictureRefused("nano-1", "corrupt")
DECIDED = FallbackDecided("nano-1", sent=False, reason="disabled")


def open_log(folder: Path, *, budget_bytes: int = 4096) -> EventLog:
    return EventLog(folder, budget_bytes=budget_bytes, schema=SCHEMA, today=lambda: DAY)


def log_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_emitted_is_read_back_in_order(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.emit(REFUSED)
    log.emit(DECIDED)
    assert list(read(tmp_path / "log")) == [LoggedEvent(DAY, REFUSED), LoggedEvent(DAY, DECIDED)]
    assert (log.dropped, log.refused) == (0, 0)


def test_a_line_holds_the_day_and_no_time(tmp_path: Path) -> None:
    EventLog(tmp_path).emit(REFUSED)
    record = json.loads((tmp_path / "events.jsonl").read_text())
    assert record.keys() == {"day", "event", "model_version", "kind"}
    assert str(date.fromisoformat(record["day"])) == record["day"]


def test_nothing_is_made_before_the_first_event(tmp_path: Path) -> None:
    open_log(tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_the_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    open_log(tmp_path / "log").emit(REFUSED)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "log" / "events.jsonl").stat().st_mode) == 0o600


def test_what_is_not_declared_never_touches_the_disk(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    undeclared: list[object] = [
        PictureRefused("nano-1", "/home/ann/cat.jpg"),
        PictureRefused("a cat on a sofa", "corrupt"),
        CaptionServed("nano-1", "device", float("nan"), 9, 1.0),
        {"event": "picture_refused", "model_version": "nano-1", "kind": "corrupt"},
        "picture_refused",
    ]
    for event in undeclared:
        log.emit(event)  # type: ignore[arg-type]  # that is the point
    assert log.refused == len(undeclared)
    assert list(tmp_path.iterdir()) == []


@given(caption=st.text(min_size=1), vector=st.lists(st.floats(), min_size=2))
def test_no_caption_and_no_vector_ends_up_in_the_file(caption: str, vector: list[float]) -> None:
    with TemporaryDirectory() as folder:
        log = open_log(Path(folder))
        log.emit(PictureRefused(f"cat {caption}", "corrupt"))
        log.emit(CaptionServed("nano-1", f"{caption}!", 0.5, 9, 1.0))  # type: ignore[arg-type]
        log.emit(CaptionServed("nano-1", "device", vector, 9, 1.0))  # type: ignore[arg-type]
        assert log.refused == 3
        assert list(Path(folder).iterdir()) == []


def test_the_budget_holds_and_the_newest_events_stay(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for tokens in range(400):
        log.emit(CaptionServed("nano-1", "device", 0.5, tokens, 1.0))
        assert log_bytes(tmp_path) <= 4096
    kept = [logged.event.tokens for logged in read(tmp_path) if isinstance(logged.event, CaptionServed)]
    assert kept == list(range(kept[0], 400))
    assert len(kept) > 15
    assert log.dropped == 0


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = open_log(tmp_path, budget_bytes=2**20)

    def emit_many() -> None:
        for _ in range(50):
            log.emit(REFUSED)

    threads = [threading.Thread(target=emit_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(read(tmp_path)) == [LoggedEvent(DAY, REFUSED)] * 200


def test_a_line_cut_short_by_a_kill_costs_that_line_only(tmp_path: Path) -> None:
    open_log(tmp_path).emit(REFUSED)
    open_log(tmp_path).emit(DECIDED)
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(whole[:-cut])
        open_log(tmp_path).emit(REFUSED)
        events = [logged.event for logged in read(tmp_path)]
        # Without its line end alone, the line is still whole.
        assert events == ([REFUSED, DECIDED, REFUSED] if cut == 1 else [REFUSED, REFUSED])


@pytest.mark.skipif(os.name == "nt", reason="kills with a POSIX signal")
def test_a_process_killed_while_it_writes_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    endless = (
        "import sys\n"
        "from pocketlens.core.events import PictureRefused\n"
        "from pocketlens.telemetry import EventLog\n"
        "log = EventLog(sys.argv[1], budget_bytes=4096)\n"
        "for turn in range(10**9):\n"
        "    log.emit(PictureRefused('nano-1', 'corrupt'))\n"
        "    if turn == 100: print('going', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", endless, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        process.kill()
    before = len(list(read(tmp_path)))
    assert before > 10
    log = open_log(tmp_path)
    log.emit(DECIDED)
    assert list(read(tmp_path))[-1] == LoggedEvent(DAY, DECIDED)
    assert log_bytes(tmp_path) <= 4096


def test_a_full_disk_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    log = open_log(tmp_path)
    monkeypatch.setattr(os, "open", full)
    log.emit(REFUSED)
    monkeypatch.undo()
    assert log.dropped == 1
    log.emit(DECIDED)
    assert [logged.event for logged in read(tmp_path)] == [DECIDED]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_takes_nothing_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = open_log(tmp_path)
    log.emit(REFUSED)
    assert log.dropped == 1


def test_a_folder_that_cannot_be_made_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "nul\0byte"):
        log = open_log(folder)
        log.emit(REFUSED)
        assert log.dropped == 1


def test_purge_leaves_nothing_and_the_log_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = open_log(folder)
    for _ in range(100):
        log.emit(REFUSED)
    stored = log_bytes(folder)
    assert len(list(folder.iterdir())) == 2
    assert purge(folder) == stored
    assert list(tmp_path.iterdir()) == []
    assert purge(folder) == 0
    log.emit(DECIDED)
    assert [logged.event for logged in read(folder)] == [DECIDED]


def test_purge_deletes_nothing_that_is_not_the_log(tmp_path: Path) -> None:
    open_log(tmp_path).emit(REFUSED)
    (tmp_path / "cat.jpg").write_bytes(b"mine")
    purge(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_a_log_that_cannot_be_read_or_deleted_is_one_typed_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(TelemetryError, match=r"events\.jsonl"):
        list(read(tmp_path))
    with pytest.raises(TelemetryError, match=r"events\.jsonl"):
        purge(tmp_path)


def test_too_small_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="4096"):
        open_log(tmp_path, budget_bytes=10)
