"""`pocketlens index` and `pocketlens search`: a folder's pictures in a store."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads
from pocketlens.commands.refused import SOME_REFUSED
from pocketlens.console import out, out_json, printable, progress, say
from pocketlens.core.errors import StoreError

__all__ = ["index", "search"]

StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="The store's file.", show_default="pocketlens.sqlite in the indexed folder's parent"),
]


def index(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of pictures, with everything below it.")],
    bundle: BundlePath,
    store: StorePath = None,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Make a folder searchable. Run it again after a kill or when files change: it goes on from there."""
    from pocketlens.runtime import Store, index_folder, load
    from pocketlens.telemetry import sink_from_environment

    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    path = store or _default_store(folder)
    with Store.open(path, model_version=lens.model_version, dim=lens.dim) as opened, progress() as report:
        done = index_folder(lens, opened, folder, progress=lambda at: report("index", at.done, at.total))
    if as_json:
        out_json({"store": str(path), **{k: getattr(done, k) for k in ("added", "unchanged", "removed", "refused")}})
    else:
        counts = f"{done.added} added, {done.unchanged} unchanged, {done.removed} removed, {len(done.refused)} refused"
        out(f"{counts}: {printable(str(path))}")
        for item in done.refused:
            say(f"refused {item.kind}: {item.message}")
    return SOME_REFUSED if done.refused else 0


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='What to look for, e.g. "two red balls on grass".')],
    bundle: BundlePath,
    store: Annotated[Path, typer.Option("--store", help="The store's file.")] = Path("pocketlens.sqlite"),
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Search an indexed folder with words."""
    from pocketlens.runtime import Store, load
    from pocketlens.telemetry import sink_from_environment

    if not query.strip():
        raise StoreError("search", expected="some words", found="an empty query", remedy="Say what to look for.")
    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    with Store.open(store, model_version=lens.model_version, dim=lens.dim, create=False) as opened:
        for hit in opened.search(lens.embed_text(query), k=k):
            if as_json:
                out_json(hit)
            else:
                out(f"{hit.score:.3f}\t{printable(hit.path)}\t{hit.caption or ''}")
    return 0


def _default_store(folder: str) -> Path:
    return Path(os.path.abspath(folder)).parent / "pocketlens.sqlite"
