"""Everything that is stored, shown to the person whom it concerns."""

import os
from collections.abc import Iterator
from typing import Final

import msgspec

from pocketlens.telemetry.log import LoggedEvent, parse_line, stored_lines

__all__ = ["NOTHING_IS_UPLOADED", "Preview", "preview"]

NOTHING_IS_UPLOADED: Final = (
    "Nothing of this is uploaded: pocketlens has no telemetry upload, and this log stays on this machine "
    "until you delete it with `pocketlens telemetry purge`."
)
"""The sentence that stands under every preview."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a log holds, without exception.

    Attributes:
        events: the stored events, oldest first.
        damaged: lines that hold no event (a kill cut them short, or something else wrote them), as
            they lie in the file, undecodable bytes escaped.
        stored_bytes: size of the log's files together.
        statement: `NOTHING_IS_UPLOADED`.
    """

    events: tuple[LoggedEvent, ...]
    damaged: tuple[str, ...]
    stored_bytes: int
    statement: str = NOTHING_IS_UPLOADED

    def lines(self) -> Iterator[str]:
        """Yield one JSON object per event, as it is stored."""
        for logged in self.events:
            yield msgspec.json.encode(_flat(logged)).decode()


def preview(folder: str | os.PathLike[str]) -> Preview:
    """Return everything that the log in `folder` holds; an absent log is an empty preview.

    Raises:
        TelemetryError: a file of the log cannot be read.
    """
    events: list[LoggedEvent] = []
    damaged: list[str] = []
    stored = 0
    for line in stored_lines(folder):
        stored += len(line)
        logged = parse_line(line)
        if logged is not None:
            events.append(logged)
        elif line.strip():
            damaged.append(line.rstrip().decode("utf-8", "backslashreplace"))
    return Preview(events=tuple(events), damaged=tuple(damaged), stored_bytes=stored)


def _flat(logged: LoggedEvent) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(logged.event)
    return {"day": logged.day, **fields}
