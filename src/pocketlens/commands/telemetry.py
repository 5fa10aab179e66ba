"""What pocketlens wrote down about itself, to look at and to delete."""

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, say
from pocketlens.telemetry import default_folder
from pocketlens.telemetry import preview as preview_of
from pocketlens.telemetry import purge as purge_log

__all__ = ["app"]

app = typer.Typer(help="The local event log: off unless POCKETLENS_TELEMETRY=local; never uploaded.", no_args_is_help=True)


@app.command("preview")
def preview(as_json: AsJson = False) -> int:
    """Show everything that is stored."""
    stored = preview_of(default_folder())
    if as_json:
        out_json({"events": list(stored.lines()), "damaged": stored.damaged, "stored_bytes": stored.stored_bytes})
        return 0
    for line in stored.lines():
        out(line)
    for line in stored.damaged:
        say(f"damaged line: {line}")
    say(f"{len(stored.events)} events, {stored.stored_bytes} bytes. {stored.statement}")
    return 0


@app.command("purge")
def purge() -> int:
    """Delete everything that is stored."""
    say(f"{purge_log(default_folder())} bytes deleted")
    return 0
