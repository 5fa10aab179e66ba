"""The local log: JSON lines in two files of bounded size, which nobody but the owner can read.

Coarsening: a line carries the UTC day, not the time. The figures in the log are compared per day
and per model version, which needs no more; a clock time beside every caption would tell when the
owner sleeps and works, and the local date would tell of travels. Numbers are rounded as declared.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.core.errors import TelemetryError
from pocketlens.core.events import Event
from pocketlens.telemetry.schema import Schema, load_schema

__all__ = ["LOG_NAMES", "EventLog", "LoggedEvent", "parse_line", "purge", "read", "stored_lines"]

LOG_NAMES: Final = ("events.1.jsonl", "events.jsonl")
"""The files of a log, oldest first. There are no others."""

_MIN_BUDGET_BYTES: Final = 4096


class LoggedEvent(msgspec.Struct, frozen=True):
    """One stored event and the UTC day on which it happened."""

    day: date
    event: Event


def utc_today() -> date:
    """Return the current date in UTC."""
    return datetime.now(UTC).date()


class EventLog:
    """An `EventSink` that appends declared events to a folder, and never raises from `emit`.

    Each event is one `write` to a file that is opened for it, so a kill loses at most that line,
    several processes may share a folder, and `purge` works while a log is in use. When the current
    file would outgrow half of `budget_bytes` it replaces the older one, so the folder never holds
    more than the budget (with several processes: more than the budget and one line of each).

    Args:
        folder: where the files go; created, for the owner only, with the first event.
        budget_bytes: upper bound of both files together, at least 4096.
        schema: what may be written; by default the declaration that ships with pocketlens.
        today: returns the day to write.

    Attributes:
        dropped: events lost because the disk refused them (full, read-only, gone).
        refused: events that the declaration does not admit; none of them touched the disk.

    Raises:
        TelemetryError: the budget is too small, or the declaration cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        budget_bytes: int = 2**20,
        schema: Schema | None = None,
        today: Callable[[], date] = utc_today,
    ) -> None:
        if budget_bytes < _MIN_BUDGET_BYTES:
            raise TelemetryError(
                "the event log's budget",
                expected=f"at least {_MIN_BUDGET_BYTES} bytes",
                found=f"{budget_bytes}",
                remedy="Give it more, or switch the log off.",
            )
        self.folder = Path(folder)
        self.dropped = 0
        self.refused = 0
        self._file_bytes = budget_bytes // 2
        self._schema = load_schema() if schema is None else schema
        self._today = today
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Append `event` if the declaration admits it; count it if it could not be written."""
        day = self._today()
        record = self._schema.admit(event, on=day)
        with self._lock:
            if record is None:
                self.refused += 1
                return
            try:
                self._append(msgspec.json.encode({"day": day, **record}) + b"\n")
            except (OSError, ValueError):  # ValueError: a path that no file system takes
                self.dropped += 1

    def _append(self, line: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        old, current = (self.folder / name for name in LOG_NAMES)
        if not self._write_if_fits(current, line):
            os.replace(current, old)
            self._write_if_fits(current, line)

    def _write_if_fits(self, path: Path, line: bytes) -> bool:
        """Write `line` to `path` unless the file would outgrow its half of the budget."""
        with open(path, "a+b", buffering=0, opener=_open_private) as file:
            size = file.seek(0, os.SEEK_END)
            if size and file.seek(size - 1) and file.read(1) != b"\n":
                line = b"\n" + line  # a kill or a full disk cut the last line short: leave it alone
            if size + len(line) > self._file_bytes:
                return False
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return True


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def stored_lines(folder: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield every line in the log's files, oldest first, as it lies there, line ends included.

    Raises:
        TelemetryError: a file of the log cannot be read.
    """
    for name in LOG_NAMES:
        path = Path(folder) / name
        try:
            yield from path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unusable(path, error) from error


def parse_line(line: bytes) -> LoggedEvent | None:
    """Return the event in one line of a log, or `None` if it is anything else, such as half a line."""
    try:
        record = msgspec.json.decode(line, type=dict[str, object])
        day = msgspec.convert(record.pop("day", None), date)
        event: Event = msgspec.convert(record, Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # A line with one key too many was not written by `EventLog`; it must not look as if it were.
    return LoggedEvent(day, event) if record.keys() == {"event", *event.__struct_fields__} else None


def read(folder: str | os.PathLike[str]) -> Iterator[LoggedEvent]:
    """Yield the events of a log, oldest first; a line that a kill cut short is passed over.

    Raises:
        TelemetryError: a file of the log cannot be read.
    """
    for line in stored_lines(folder):
        event = parse_line(line)
        if event is not None:
            yield event


def purge(folder: str | os.PathLike[str]) -> int:
    """Delete the log, and its folder if nothing else is in it; return how many bytes went.

    Raises:
        TelemetryError: a file of the log cannot be deleted.
    """
    root, removed = Path(folder), 0
    for path in (root / name for name in LOG_NAMES):
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unusable(path, error) from error
        removed += size
    with suppress(OSError):  # not there, or something else lies in it
        root.rmdir()
    return removed


def _unusable(path: Path, error: OSError) -> TelemetryError:
    return TelemetryError(
        f"event log {path}",
        expected="a file that can be read and deleted",
        found=error.strerror or str(error),
        remedy="Correct its permissions, or delete it by hand.",
    )
