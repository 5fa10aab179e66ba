"""What a person sees: results on stdout, everything else on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pocketlens.core.errors import PocketlensError

__all__ = ["STDERR", "out", "out_json", "progress", "say", "show_error"]

STDERR = Console(stderr=True, highlight=False)


def out(text: str) -> None:
    """Write one line of result to stdout."""
    sys.stdout.write(text + "\n")


def out_json(value: Any) -> None:
    """Write `value` to stdout as one line of JSON."""
    out(msgspec.json.encode(value, enc_hook=str).decode())


def say(text: str) -> None:
    """Write a line for the person at the terminal to stderr, as it is."""
    STDERR.print(text, markup=False, soft_wrap=True)


def show_error(error: PocketlensError, *, as_json: bool) -> None:
    """Write `error` to stderr: one sentence, or one line of JSON."""
    if as_json:
        fields = {
            "error": type(error).__name__,
            "what": error.what,
            "expected": error.expected,
            "found": error.found,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        sys.stderr.write(msgspec.json.encode(fields).decode() + "\n")
    else:
        STDERR.print(f"[bold red]{type(error).__name__}[/] ", end="")
        say(str(error))


class _Bars:
    """Progress bars that appear when their step first reports."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total, note=note)
        self._bars.update(self._tasks[step], completed=done, total=total, note=note)


@contextmanager
def progress() -> Iterator[_Bars]:
    """Give a callable `(step, done, total, note="")` that draws bars with counts, time and ETA on stderr."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=STDERR) as bars:
        yield _Bars(bars)
