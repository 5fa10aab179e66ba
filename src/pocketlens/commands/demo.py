"""The whole way on the built-in data."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress, say

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("build/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes less, and a student that has hardly learned.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A longer training: meant for about an hour on two CPU cores.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Go the whole way on drawn scenes: teachers, student, bundle, captions, search, report.html."""
    if quick and full:
        raise typer.BadParameter("choose one of --quick and --full")
    from pocketlens.demo.run import run_demo

    with progress() as report:
        outcome = run_demo(folder, "quick" if quick else "full" if full else "demo", report)
    if as_json:
        out_json(outcome.summary)
    else:
        for goal in outcome.goals:
            out(f"{'met ' if goal.passed else 'MISS'}  {goal.name}: {goal.got} (wanted {goal.wanted})")
        out(f"summary  {folder / 'summary.json'}")
        out(f"report   {outcome.report}")
    say("Now try: pocketlens caption YOUR.jpg --bundle " + str(folder / "bundle"))
    return 0
