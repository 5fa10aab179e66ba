"""What a person sees: results on stdout, everything else on stderr."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pocketlens.core.errors import DataError, PocketlensError, StorageFull

__all__ = [
    "STDERR",
    "Reporter",
    "drop_stdout",
    "flush",
    "out",
    "out_json",
    "printable",
    "progress",
    "say",
    "show_error",
    "show_json",
    "show_misuse",
    "typed",
]

STDERR = Console(stderr=True, highlight=False, emoji=False)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def out(text: str) -> None:
    """Write one line of result to stdout, at once: what was printed survives a kill.

    Raises:
        BrokenPipeError: whoever read our stdout closed it; there is nobody left to write for.
        StorageFull: stdout is a file and its disk is full.
    """
    with _stdout_errors():
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()


def out_json(value: Any) -> None:
    """Write `value` to stdout as one line of JSON; errors as in `out`."""
    out(_as_json(value))


def flush() -> None:
    """Write what Python still holds of stdout; errors as in `out`."""
    with _stdout_errors():
        sys.stdout.flush()


@contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise typed(error, "writing the results to stdout") from error


def drop_stdout() -> None:
    """Point stdout to nowhere, so that Python does not fail again when it flushes at the end."""
    with suppress(OSError):  # a stdout that is no real file needs none of this
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _as_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8: escaped as Python's json does, it can be read back to the same name.
        return json.dumps(msgspec.to_builtins(value, enc_hook=str))


def printable(name: str) -> str:
    """Return a file's name for a line of text: quoted and escaped where it would break the line."""
    return name if name.isprintable() else ascii(name)


def say(text: str) -> None:
    """Write lines for the person at the terminal to stderr; what is no letter is shown escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    STDERR.print(shown, markup=False, soft_wrap=True)


def show_error(error: PocketlensError, *, as_json: bool) -> int:
    """Write `error` to stderr, as one sentence or one line of JSON, and return its exit code."""
    if as_json:
        show_json(error.fields())
    else:
        STDERR.print(f"[bold red]{type(error).__name__}[/] ", end="")
        say(str(error))
    return error.exit_code


def show_json(value: Any) -> None:
    """Write `value` to stderr as one line of JSON."""
    sys.stderr.write(_as_json(value) + "\n")


def show_misuse(error: typer.TyperException) -> int:
    """Write what is wrong with the command line, and its usage, to stderr; return the exit code."""
    message = error.format_message()
    if message:  # without one, the help was shown already
        context = getattr(error, "ctx", None)
        if context is not None:
            say(f"{context.get_usage()}\nTry `{context.command_path} --help`.")
        say(f"Error: {message}")
    return error.exit_code


def typed(error: PocketlensError | OSError, what: str | None = None) -> PocketlensError:
    """Return `error` as one of ours: what the system said about a file that a command needed."""
    if isinstance(error, PocketlensError):
        return error
    subject = what or str(error.filename or "a file")
    found = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return StorageFull(
            subject,
            expected="free space on the disk",
            found=found,
            remedy="Free some space and run the same command again; finished work is kept.",
        )
    return DataError(
        subject,
        expected="a file or folder that can be read and written",
        found=found,
        remedy="Check the path, its permissions and the disk.",
    )


class Reporter(Protocol):
    """Told how far a step is: its name, what is done, what there is to do, and a note such as the loss."""

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        """Show it."""
        ...


class _Bars:
    """Progress bars that appear when their step first reports."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        if not self._tasks:
            self._bars.start()
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total, note=note)
        self._bars.update(self._tasks[step], completed=done, total=total, note=note)


class _Lines:
    """The same for a log file: a line when a step is a good while further, and one when it is done."""

    EVERY_S = 15.0

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._said = 0.0

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        began = self._began.setdefault(step, now)
        if done < total and now - self._said < self.EVERY_S:
            return
        self._said = now
        left = (now - began) * (total - done) / done if done else 0.0
        say(f"{step} {done}/{total} after {now - began:.0f} s, ETA {left:.0f} s {note}".rstrip())


@contextmanager
def progress() -> "Iterator[Reporter]":
    """Give a callable `(step, done, total, note="")` that shows counts, time and ETA on stderr.

    Bars on a terminal, a line now and then elsewhere.
    """
    if not STDERR.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars = Progress(*columns, console=STDERR)
    try:
        yield _Bars(bars)
    finally:
        if bars.tasks:  # else nothing was drawn, and stopping would leave an empty line
            bars.stop()
