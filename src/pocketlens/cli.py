"""The command line: `pocketlens COMMAND`. Results on stdout, progress and errors on stderr.

Exit codes are those of `pocketlens.core.errors`; `docs/cli.md` lists them. Heavy libraries are imported
inside the commands that need them.
"""

import sys
from collections.abc import Sequence

import click
import typer

from pocketlens.commands import bundles, cloud, demo, distilling, offline, telemetry
from pocketlens.console import say, show_error
from pocketlens.core.errors import PocketlensError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pocketlens",
    help="Compact captioning and embedding models: distil, export, verify, and run offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(distilling.app, name="distill")
app.command("inspect")(bundles.inspect)
app.command("caption")(offline.caption)
app.command("embed")(offline.embed)
app.command("index")(offline.index)
app.command("search")(offline.search)
app.command("serve")(cloud.serve)
app.add_typer(telemetry.app, name="telemetry")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no error of ours ends in a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(args=arguments, prog_name="pocketlens", standalone_mode=False)
    except PocketlensError as error:
        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    except click.exceptions.Abort:
        say("Interrupted: what was finished is kept.")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # the reader of our stdout (head, less) went away: that is its right
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0
