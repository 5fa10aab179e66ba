"""Offline use of a bundle: caption, embed, index, search."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads
from pocketlens.console import described, out, out_json, printable, progress, say, show_json
from pocketlens.core.errors import CloudError, StoreError

if TYPE_CHECKING:
    from pocketlens.core.captions import CaptionFallback
    from pocketlens.core.events import EventSink
    from pocketlens.runtime.results import Refusal

__all__ = ["caption", "embed", "index", "search"]

_SOME_REFUSED = 1

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Picture files.", show_default=False)]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="The store's file.", show_default="pocketlens.sqlite in the indexed folder's parent"),
]


def caption(
    files: Files,
    bundle: BundlePath,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses of beam search; 1 is greedy.")] = 1,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    cloud: Annotated[str | None, typer.Option(help="Address of a `pocketlens serve` to ask when unsure.")] = None,
    consent: Annotated[bool, typer.Option("--consent", help="I agree that unsure pictures are sent there.")] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="With --cloud: unsure below this confidence.")] = 0.5,
    as_json: AsJson = False,
) -> int:
    """Caption pictures; a bad one is listed and left out. Nothing leaves the device without --cloud and --consent."""
    from pocketlens.runtime import Refusal, load
    from pocketlens.telemetry import sink_from_environment

    if consent and cloud is None:
        raise CloudError(
            "--consent", expected="--cloud URL beside it", found="no --cloud", remedy="Say where pictures may be sent."
        )
    sink = sink_from_environment()
    refused: list[Refusal] = []
    with _fallback(cloud, consent=consent, threshold=threshold, sink=sink) as fallback:
        lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink, fallback=fallback)
        for path, result in zip(files, lens.captions(files, beam=beam), strict=True):
            if isinstance(result, Refusal):
                refused.append(result)
            elif as_json:
                out_json({"file": path, **_fields(result)})
            else:
                source = "" if result.source == "device" else f"  [{result.source}]"
                out(f"{printable(path)}\t{result.confidence:.2f}\t{result.text}{source}")
    return _list_refused(refused, files, as_json=as_json)


def embed(
    files: Files,
    bundle: BundlePath,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Embed pictures: one line each, the file and its vector."""
    from pocketlens.runtime import Refusal, load
    from pocketlens.telemetry import sink_from_environment

    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    refused: list[Refusal] = []
    for path, vector in zip(files, lens.embed_images(files), strict=True):
        if isinstance(vector, Refusal):
            refused.append(vector)
        elif as_json:
            out_json({"file": path, "model_version": lens.model_version, "embedding": vector.tolist()})
        else:
            out(f"{printable(path)}\t{' '.join(f'{x:.6f}' for x in vector)}")
    return _list_refused(refused, files, as_json=as_json)


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
    return _SOME_REFUSED if done.refused else 0


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


@contextmanager
def _fallback(
    url: str | None, *, consent: bool, threshold: float, sink: "EventSink"
) -> "Iterator[CaptionFallback | None]":
    if url is None:
        yield None
        return
    from datetime import UTC, datetime

    from pocketlens.cloud_fallback import CloudCaptioner, Consent, FallbackPolicy, PolicyFallback

    granted = Consent.grant("captions", at=datetime.now(UTC)) if consent else Consent()
    if not consent:
        say("Nothing is sent: --cloud was given without --consent.")
    with CloudCaptioner(url) as client:
        yield PolicyFallback(FallbackPolicy(threshold=threshold, consent=granted), client, sink)


def _fields(caption: object) -> dict[str, object]:
    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(caption)
    return fields


def _list_refused(refused: "list[Refusal]", files: list[str], *, as_json: bool) -> int:
    """List refused pictures on stderr and return the exit code.

    Raises:
        PictureError: the only picture was refused.
    """
    if refused and len(files) == 1:
        raise refused[0].error
    for refusal in refused:
        if as_json:
            show_json({"file": files[refusal.index], **described(refusal.error)})
        else:
            say(f"refused {refusal.error.kind}: {refusal.error}")
    if refused and not as_json:
        say(f"{len(files) - len(refused)} of {len(files)} pictures done, {len(refused)} refused")
    return _SOME_REFUSED if refused else 0
