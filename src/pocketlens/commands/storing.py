"""`pocketlens store`: check, repair, compact, stats, duplicates, erase, upgrade, rollback, cancel."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads
from pocketlens.console import out, out_json, printable, progress, say
from pocketlens.core.errors import StoreError

__all__ = ["app"]

app = typer.Typer(help="Look after a store that `index` made.", no_args_is_help=True)

StorePath = Annotated[Path, typer.Option("--store", help="The store's file.")]
_DEFAULT = Path("pocketlens.sqlite")
_DAMAGED = 11
"""The exit code of `StoreError`: `check` lists all that it found instead of stopping at the first."""


@app.command("check")
def check(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Read every byte of the store and list what is not as it was written."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        damages = opened.damages()
        for damage in damages:
            if as_json:
                out_json(damage)
            else:
                out(f"{damage.kind}\t{damage.id}\t{printable(damage.path)}\t{damage.found}")
        say(f"{len(damages)} damaged, {len(opened)} rows")
    return _DAMAGED if damages else 0


@app.command("repair")
def repair(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Remove damaged rows; the next `index` makes them again."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        count = opened.repair()
        opened.prepare()
    if as_json:
        out_json({"removed": count})
    else:
        out(f"{count} damaged: removed. Run `pocketlens index` to make their rows again.")
    return 0


@app.command("compact")
def compact(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Write the file anew without its unused pages."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        before = opened.stats().database
        opened.compact()
        after = opened.stats().database
    if as_json:
        out_json({"bytes_before": before, "bytes_after": after})
    else:
        out(f"{before} bytes before, {after} after")
    return 0


@app.command("stats")
def stats(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Show what is in the store."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        found = opened.stats()
    if as_json:
        out_json(found)
    else:
        for name, value in msgspec.structs.asdict(found).items():
            out(f"{name}\t{value}")
    return 0


@app.command("duplicates")
def duplicates(
    store: StorePath = _DEFAULT,
    least: Annotated[float, typer.Option(min=0, max=1, help="The cosine that makes two pictures near.")] = 0.97,
    tenant: Annotated[str, typer.Option(help="Whose files.")] = "",
    as_json: AsJson = False,
) -> int:
    """List groups of near-duplicates, one line a group."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        for group in opened.duplicates(least=least, tenant=tenant):
            paths = [hit.path for hit in group]
            if as_json:
                out_json(paths)
            else:
                out("\t".join(printable(path) for path in paths))
    return 0


@app.command("erase")
def erase(
    store: StorePath = _DEFAULT,
    file: Annotated[str | None, typer.Option(help="The path of a file, as `search` shows it.")] = None,
    album: Annotated[str | None, typer.Option(help="Every file of this album.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose file or album; alone: all of this tenant.")] = None,
    as_json: AsJson = False,
) -> int:
    """Erase vectors and captions so that no byte of them is left in any file of the store; print a receipt."""
    from pocketlens.runtime import Store

    if (file is not None) + (album is not None) > 1 or (file is None and album is None and tenant is None):
        raise StoreError(
            "store erase",
            expected="--file or --album, or --tenant alone",
            found="several" if file is not None else "none of them",
            remedy="Name what is to be erased.",
        )
    with Store.open(store, create=False) as opened:
        receipt = opened.erase(file=file, album=album, tenant=tenant)
    if as_json:
        out_json(receipt)
    else:
        for name, value in msgspec.structs.asdict(receipt).items():
            out(f"{name}\t{value}")
    return 0


@app.command("upgrade")
def upgrade(
    bundle: BundlePath,
    store: StorePath = _DEFAULT,
    switch: Annotated[bool, typer.Option("--switch/--no-switch", help="Let the new version answer at the end.")] = True,
    finish: Annotated[bool, typer.Option("--finish", help="Remove the old version's rows afterwards.")] = False,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Bring the store to another bundle while it answers. Run it again after a kill: it goes on from there."""
    from pocketlens.runtime import Store, load
    from pocketlens.runtime.upgrading import upgrade_store
    from pocketlens.telemetry import sink_from_environment

    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    with progress() as report:
        status = upgrade_store(lens, store, switch=switch, progress=lambda at: report("upgrade", at.done, at.total))
    if finish and status.active == lens.model_version:
        with Store.open(store, create=False) as opened:
            opened.upgrade.finish()
            status = opened.upgrade.status()
    if as_json:
        out_json(status)
    else:
        out(f"active {status.active}, filling {status.shadow or '-'}, previous {status.previous or '-'}")
    return 0


@app.command("rollback")
def rollback(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Let the model version from before the last upgrade answer again."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        opened.upgrade.roll_back()
        status = opened.upgrade.status()
    if as_json:
        out_json(status)
    else:
        out(f"active {status.active}, previous {status.previous or '-'}")
    return 0


@app.command("cancel")
def cancel(store: StorePath = _DEFAULT, as_json: AsJson = False) -> int:
    """Give up an upgrade that is not finished, and remove what it made."""
    from pocketlens.runtime import Store

    with Store.open(store, create=False) as opened:
        opened.upgrade.cancel()
        status = opened.upgrade.status()
    if as_json:
        out_json(status)
    else:
        out(f"active {status.active}")
    return 0
