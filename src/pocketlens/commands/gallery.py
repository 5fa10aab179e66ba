"""`pocketlens gallery`: a web page for a store, on this machine only."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads
from pocketlens.console import out, out_json, say

__all__ = ["gallery"]


def gallery(
    bundle: BundlePath,
    store: Annotated[Path, typer.Option("--store", help="The store's file.")] = Path("pocketlens.sqlite"),
    upgrade_to: Annotated[
        Path | None,
        typer.Option("--upgrade-to", help="Another bundle, to upgrade the store to from the page.", show_default=False),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose files.")] = "",
    host: Annotated[str, typer.Option(help="127.0.0.1 or ::1; no other address is served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Serve a page to search a store, upgrade its model and erase from it; Ctrl+C ends it."""
    from pocketlens.runtime import load
    from pocketlens.runtime.gallery import Gallery, GalleryServer
    from pocketlens.telemetry import sink_from_environment

    sink = sink_from_environment()
    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink)
    newer = None
    if upgrade_to is not None:
        newer = load(upgrade_to, engine=engine, precision=precision, threads=threads, sink=sink)
    with (
        Gallery(lens, store, upgrade=newer, tenant=tenant) as shown,
        GalleryServer(shown, host=host, port=port) as server,
    ):
        if as_json:
            out_json({"url": server.url})
        else:
            out(server.url)
        say("The address opens once. Ctrl+C ends the gallery.")
        if open_page:
            webbrowser.open(server.url)
        server.serve_forever()
    return 0
