"""`pocketlens tune`: what runs a bundle fastest on this device."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.options import AsJson
from pocketlens.console import STDERR, out, out_json, say
from pocketlens.core.errors import EngineError

if TYPE_CHECKING:
    from pocketlens.core.bundle import Bundle
    from pocketlens.runtime.selection import Plan
    from pocketlens.runtime.tuning import Profile

__all__ = ["tune"]

_COLUMNS = ("role", "engine", "precision", "threads", "p50 ms", "p90 ms", "golden", "")


def tune(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False, readable=False)
    ],
    engine: Annotated[
        str | None, typer.Option(help="Only these engines, joined by commas.", show_default="all on this machine")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Only this number of CPU threads.", show_default="1, 2, 4, ... up to all")
    ] = None,
    limit: Annotated[float, typer.Option("--limit", min=1.0, help="Seconds after which nothing more is tried.")] = 60.0,
    show: Annotated[bool, typer.Option("--show", help="Show what is kept for this device; measure nothing.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Delete what is kept for this device.")] = False,
    as_json: AsJson = False,
) -> int:
    """Measure which engine, precision and number of threads runs a bundle fastest here; `load` then uses it."""
    from pocketlens.core.bundle import load_bundle
    from pocketlens.runtime.tuning import load_profile, profile_path
    from pocketlens.runtime.tuning import tune as measure

    loaded = load_bundle(bundle)
    if forget:
        profile_path(loaded).unlink(missing_ok=True)
        say("forgotten: the figures of the exporting machine choose again")
        return 0
    if show:
        profile = load_profile(loaded)
    else:
        with STDERR.status("measuring on this device"):
            profile = measure(loaded, engines=engine, threads=threads, limit_s=limit)
    if profile is None:
        raise EngineError(
            f"bundle {bundle}",
            expected="a measurement on this device",
            found="none that fits this bundle, this device and the installed packages",
            remedy=f"pocketlens tune {bundle}",
        )
    return _show(loaded, profile, as_json=as_json)


def _show(bundle: "Bundle", profile: "Profile", *, as_json: bool) -> int:
    from pocketlens.runtime.selection import needed_roles, plan_engines

    plan = plan_engines(bundle)
    if as_json:
        chosen = {
            role: {"engine": str(c.spec), "precision": c.record.precision, "path": c.record.path, "threads": c.threads}
            for role, (c, *_) in plan.chains.items()
        }
        out_json({"chosen_by": plan.chosen_by, "chosen": chosen, "profile": profile})
    else:
        _table(profile, plan)
        say(f"measured in {profile.seconds:.1f} s; `load` uses the rows marked with *")
    right = {m.role for m in profile.measurements if m.status == "measured"}
    missing = [role for role in needed_roles(bundle) if role not in right]
    if missing:
        say(f"no right graph here for {', '.join(missing)}")
    return EngineError.exit_code if missing else 0


def _table(profile: "Profile", plan: "Plan") -> None:
    rows = []
    chosen = {(role, str(c.spec), c.record.path, c.threads) for role, (c, *_) in plan.chains.items()}
    for m in profile.measurements:
        mark = "*" if (m.role, m.engine, m.path, m.threads) in chosen else ""
        rows.append(
            (
                m.role,
                m.engine,
                m.precision,
                str(m.threads),
                "-" if m.p50_ms is None else f"{m.p50_ms:.3f}",
                "-" if m.p90_ms is None else f"{m.p90_ms:.3f}",
                "-" if m.figure is None else f"{m.figure:.4f}",
                mark or (f"{m.status}: {m.note}" if m.note else m.status if m.status != "measured" else ""),
            )
        )
    if not sys.stdout.isatty():
        out("\t".join(_COLUMNS).rstrip())
        for row in rows:
            out("\t".join(row).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if row[-1] == "*" else None)
    Console(emoji=False, highlight=False).print(table)
