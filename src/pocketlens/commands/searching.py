"""`pocketlens index` and `pocketlens search`: a folder's pictures in a store."""

import os
import threading
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads, Untrusted, decoded_in
from pocketlens.commands.refused import SOME_REFUSED
from pocketlens.console import out, out_json, printable, progress, say
from pocketlens.core.errors import StoreError

if TYPE_CHECKING:
    from pocketlens.runtime import Hit, IndexReport, Lens
    from pocketlens.runtime.indexing import RowReader

__all__ = ["index", "search"]

StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="The store's file.", show_default="pocketlens.sqlite in the indexed folder's parent"),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose files: tenants never see each other's.")]


def index(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of pictures, with everything below it.")],
    bundle: BundlePath,
    store: StorePath = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on following the folder until interrupted.")] = False,
    poll: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="With --watch: look at every file after so many seconds.",
            show_default="be told by the system; without the extra watch, 2",
        ),
    ] = None,
    tenant: Tenant = "",
    album: Annotated[str | None, typer.Option(help="The album of new and changed files.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help="How a new store keeps its vectors: fp32, fp16, int8, binary.")] = "fp32",
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    untrusted: Untrusted = False,
    as_json: AsJson = False,
) -> int:
    """Make a folder searchable. Run it again after a kill or when files change: it goes on from there."""
    from pocketlens.runtime import Store, index_folder, load
    from pocketlens.runtime.store.rows import DTYPES
    from pocketlens.runtime.watching import watch_folder
    from pocketlens.telemetry import sink_from_environment

    if dtype not in DTYPES:
        raise StoreError("--dtype", expected=" or ".join(DTYPES), found=dtype, remedy="Name one of these.")
    lens = load(
        bundle,
        engine=engine,
        precision=precision,
        threads=threads,
        decode=decoded_in(untrusted),
        sink=sink_from_environment(),
    )
    path = store or _default_store(folder)

    def show(done: "IndexReport") -> None:
        if as_json:
            counts = {k: getattr(done, k) for k in ("added", "unchanged", "removed", "refused", "copied")}
            out_json({"store": str(path), **counts})
            return
        counts_text = f"{done.added} added, {done.unchanged} unchanged, {done.removed} removed, "
        out(f"{counts_text}{len(done.refused)} refused: {printable(str(path))}")
        for item in done.refused:
            say(f"refused {item.kind}: {item.message}")

    with Store.open(path, model_version=lens.model_version, dim=lens.dim, dtype=dtype) as opened, progress() as report:
        if watch:
            watch_folder(
                lens,
                opened,
                folder,
                report=show,
                stop=threading.Event(),
                poll_s=poll,
                tenant=tenant,
                album=album,
                readers=_readers(lens),
                progress=lambda at: report("index", at.done, at.total),
            )
            return 0
        done = index_folder(
            lens,
            opened,
            folder,
            tenant=tenant,
            album=album,
            readers=_readers(lens),
            progress=lambda at: report("index", at.done, at.total),
        )
    show(done)
    return SOME_REFUSED if done.refused else 0


def search(
    bundle: BundlePath,
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help='What to look for, e.g. "two red balls on grass".', show_default=False),
    ] = "",
    store: Annotated[Path, typer.Option("--store", help="The store's file.")] = Path("pocketlens.sqlite"),
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    image: Annotated[str | None, typer.Option(help="What it should look like: a picture.", show_default=False)] = None,
    like: Annotated[
        int | None, typer.Option(help="More like this row: an id of an answer with --json.", show_default=False)
    ] = None,
    unlike: Annotated[str, typer.Option("--not", help="What it should not be.", show_default=False)] = "",
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Rank by the words of captions as well.")] = False,
    tenant: Tenant = "",
    folder: Annotated[str | None, typer.Option(help="Only files below this folder.", show_default=False)] = None,
    album: Annotated[str | None, typer.Option(help="Only files of this album.", show_default=False)] = None,
    taken_from: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="Taken on this day or later.", show_default=False),
    ] = None,
    taken_until: Annotated[
        datetime | None,
        typer.Option("--until", formats=["%Y-%m-%d"], help="Taken before this day.", show_default=False),
    ] = None,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Search an indexed folder with words, a picture, or a row that was found before."""
    from pocketlens.runtime import Store, load
    from pocketlens.runtime.finding import find
    from pocketlens.runtime.store import Filter
    from pocketlens.telemetry import sink_from_environment

    if not query.strip() and image is None and like is None:
        raise StoreError("search", expected="some words", found="an empty query", remedy="Say what to look for.")
    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    wanted = Filter(
        tenant=tenant,
        folder=None if folder is None else os.path.realpath(folder),
        album=album,
        taken_from=_seconds(taken_from),
        taken_until=_seconds(taken_until),
    )
    with Store.open(store, model_version=lens.model_version, dim=lens.dim, create=False) as opened:
        if like is not None:
            hits = opened.more_like(like, k=k, filter=wanted)
        else:
            hits = find(lens, opened, query, picture=image, unlike=unlike, k=k, filter=wanted, hybrid=hybrid)
        _show(hits, as_json=as_json)
        if opened.damaged:
            say(f"{len(opened.damaged)} damaged rows were left out: run `pocketlens store repair --store {store}`")
    return 0


def _show(hits: "list[Hit]", *, as_json: bool) -> None:
    for hit in hits:
        if as_json:
            out_json(hit)
        else:
            at = f" at {_span(hit)}" if hit.modality == "video" else ""
            out(f"{hit.score:.3f}\t{printable(hit.path)}{at}\t{hit.caption or ''}")


def _span(hit: "Hit") -> str:
    """Return where in its video a row stands, as `1:05-1:20`."""
    ends = [hit.at_ms] if hit.until_ms is None else [hit.at_ms, hit.until_ms]
    return "-".join(f"{at // 60_000}:{at % 60_000 // 1000:02d}" for at in ends)


def _readers(lens: "Lens") -> "tuple[RowReader, ...]":
    """Return what reads more than pictures: videos, where the extra `video` is installed."""
    if find_spec("av") is None:
        return ()
    from pocketlens.runtime.video import VideoReader

    return (VideoReader(lens),)


def _seconds(day: datetime | None) -> int | None:
    return None if day is None else int(day.replace(tzinfo=UTC).timestamp())


def _default_store(folder: str) -> Path:
    return Path(os.path.abspath(folder)).parent / "pocketlens.sqlite"
