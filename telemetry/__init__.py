"""What pocketlens writes down about itself: declared events in a local, bounded log. Nothing is uploaded."""

from pocketlens.telemetry.lint import lint
from pocketlens.telemetry.log import EventLog, LoggedEvent, purge, read
from pocketlens.telemetry.preview import NOTHING_IS_UPLOADED, Preview, preview
from pocketlens.telemetry.schema import Schema, load_schema
from pocketlens.telemetry.settings import default_folder, sink_from_environment

__all__ = [
    "NOTHING_IS_UPLOADED",
    "EventLog",
    "LoggedEvent",
    "Preview",
    "Schema",
    "default_folder",
    "lint",
    "load_schema",
    "preview",
    "purge",
    "read",
    "sink_from_environment",
]
