"""What pocketlens wrote down about itself, to look at and to delete."""

import json

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, say
from pocketlens.telemetry import default_folder
from pocketlens.telemetry import preview as preview_of
from pocketlens.telemetry import purge as purge_log

__all__ = ["app"]

app = typer.Typer(
    help="The local event log: off unless POCKETLENS_TELEMETRY=local; never uploaded.", no_args_is_help=True
)


@app.command("preview")
def preview(as_json: AsJson = False) -> int:
    """Show everything that is stored."""
    stored = preview_of(default_folder())
    if as_json:
        events = [json.loads(line) for line in stored.lines()]
        out_json({"events": events, "damaged": stored.damaged, "stored_bytes": stored.stored_bytes})
        return 0
    for line in stored.lines():
        out(line)
    for line in stored.damaged:
        say(f"damaged line: {line}")
    say(f"{len(stored.events)} events, {stored.stored_bytes} bytes. {stored.statement}")
    return 0


@app.command("purge")
def purge(as_json: AsJson = False) -> int:
    """Delete everything that is stored."""
    deleted = purge_log(default_folder())
    if as_json:
        out_json({"deleted_bytes": deleted})
    else:
        say(f"{deleted} bytes deleted")
    return 0
