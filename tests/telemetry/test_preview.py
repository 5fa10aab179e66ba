"""The preview shows all that is stored, and says that nothing is uploaded."""

import json
from datetime import date
from pathlib import Path

from pocketlens.core.events import PictureRefused
from pocketlens.telemetry import NOTHING_IS_UPLOADED, EventLog, preview

DAY = date(2026, 11, 22)
REFUSED = PictureRefused("nano-1", "corrupt")


def test_an_absent_log_is_an_empty_preview(tmp_path: Path) -> None:
    shown = preview(tmp_path / "none")
    assert (shown.events, shown.damaged, shown.stored_bytes) == ((), (), 0)
    assert shown.statement == NOTHING_IS_UPLOADED
    assert "Nothing of this is uploaded" in shown.statement


def test_the_preview_shows_each_event_as_it_is_stored(tmp_path: Path) -> None:
    log = EventLog(tmp_path, budget_bytes=4096, today=lambda: DAY)
    for _ in range(40):
        log.emit(REFUSED)
    files = [tmp_path / "events.1.jsonl", tmp_path / "events.jsonl"]
    stored = "".join(path.read_text() for path in files)
    shown = preview(tmp_path)
    assert [json.loads(line) for line in shown.lines()] == [json.loads(line) for line in stored.splitlines()]
    assert shown.stored_bytes == len(stored.encode())
    assert shown.damaged == ()


def test_what_is_no_event_is_shown_too(tmp_path: Path) -> None:
    EventLog(tmp_path, today=lambda: DAY).emit(REFUSED)
    path = tmp_path / "events.jsonl"
    strangers = [
        b'{"day":"2026-11-22","event":"picture_refused","model_version":"1","kind":"corrupt","path":"/x"}',
        b'{"day":"2026-11-22","event":"unheard_of"}',
        b'{"day":"yesterday","event":"picture_refused","model_version":"1","kind":"corrupt"}',
        b"\xff\xfe",
        b'["list"]',
        b'{"day":"2026-11-2',
    ]
    path.write_bytes(path.read_bytes() + b"\n".join(strangers))
    shown = preview(tmp_path)
    assert len(shown.events) == 1
    assert shown.damaged == tuple(line.decode("utf-8", "backslashreplace") for line in strangers)
    assert shown.stored_bytes == path.stat().st_size
