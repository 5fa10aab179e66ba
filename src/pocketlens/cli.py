"""The command line: `pocketlens COMMAND`. Results on stdout, progress and errors on stderr.

Exit codes are those of `pocketlens.core.errors`; `docs/cli.md` lists them. Heavy libraries are imported
inside the commands that need them.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main

from pocketlens import __version__
from pocketlens.commands import (
    bundles,
    captioning,
    cloud,
    demo,
    distilling,
    embedding,
    evaluating,
    gallery,
    integrity,
    searching,
    storing,
    telemetry,
    tuning,
    video,
)
from pocketlens.console import drop_stdout, flush, out, say, show_error, show_misuse, typed
from pocketlens.core.errors import PocketlensError

__all__ = ["app", "main"]

_INTERRUPTED = 130  # what shells give for SIGINT

app = typer.Typer(
    name="pocketlens",
    help="Compact captioning and embedding models: distil, export, verify, and run offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(distilling.app, name="distill")
app.command("export")(bundles.export)
app.command("verify")(bundles.verify)
app.command("inspect")(bundles.inspect)
app.command("tune")(tuning.tune)
app.command("keygen")(integrity.keygen)
app.command("sign")(integrity.sign)
app.command("pack")(integrity.pack)
app.command("install")(integrity.install)
app.command("caption")(captioning.caption)
app.command("embed")(embedding.embed)
app.command("index")(searching.index)
app.command("search")(searching.search)
app.command("video")(video.video)
app.command("gallery")(gallery.gallery)
app.add_typer(storing.app, name="store")
app.command("evaluate")(evaluating.evaluate)
app.add_typer(evaluating.app, name="ratings")
app.command("serve")(cloud.serve)
app.add_typer(telemetry.app, name="telemetry")


def _print_version(wanted: bool) -> None:
    if wanted:
        out(f"pocketlens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no error of ours ends in a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        flush()
    except BrokenPipeError:
        drop_stdout()
        return 0  # the reader of our stdout (head, less) went away: that is its right
    except SystemExit as ending:
        if not isinstance(ending.__context__, BrokenPipeError):
            raise
        return 0  # the same, noticed by rich in the middle of a help page
    except (PocketlensError, OSError) as error:
        return show_error(typed(error), as_json="--json" in arguments)
    except (KeyboardInterrupt, typer.Abort):
        say("Interrupted: what was finished is kept.")
        return _INTERRUPTED
    except typer.TyperException as error:
        return show_misuse(error)
    return code


def _run(arguments: list[str]) -> int:
    # Not `app(...)`: Typer would handle Ctrl+C, broken pipes and its own errors in other ways than we do.
    command = typer.main.get_command(app)
    try:
        with command.make_context("pocketlens", arguments) as context:
            code = command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    return code if isinstance(code, int) else 0
