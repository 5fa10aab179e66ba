"""Whether and where the log is kept: off unless somebody says so.

`POCKETLENS_TELEMETRY=local` switches the local log on for every command and every program that
asks `sink_from_environment`; unset, empty or `off` leaves it off. `POCKETLENS_TELEMETRY_DIR` names
its folder. A program may as well build an `EventLog` itself and hand it to the runtime.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import platformdirs

from pocketlens.core.errors import TelemetryError
from pocketlens.core.events import NULL_SINK, EventSink
from pocketlens.telemetry.log import EventLog

__all__ = ["FOLDER_VARIABLE", "SWITCH_VARIABLE", "default_folder", "sink_from_environment"]

SWITCH_VARIABLE: Final = "POCKETLENS_TELEMETRY"
"""`local` keeps a log on this machine; unset, empty or `off` keeps none."""

FOLDER_VARIABLE: Final = "POCKETLENS_TELEMETRY_DIR"
"""The log's folder, where the default one does not suit."""


def sink_from_environment(environ: Mapping[str, str] = os.environ) -> EventSink:
    """Return the local log if the environment asks for it, the sink that forgets everything if not.

    Raises:
        TelemetryError: the switch has a value that means nothing.
    """
    match environ.get(SWITCH_VARIABLE, "off"):
        case "local":
            return EventLog(default_folder(environ))
        case "" | "off":
            return NULL_SINK
        case other:
            raise TelemetryError(
                f"environment variable {SWITCH_VARIABLE}",
                expected="`local` or `off`",
                found=repr(other),
                remedy="Set it to `local` to keep a log on this machine, or unset it.",
            )


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the log's folder: as the environment says, else in this user's folder for state."""
    named = environ.get(FOLDER_VARIABLE)
    return Path(named) if named else platformdirs.user_state_path("pocketlens", appauthor=False) / "telemetry"
