"""`pocketlens caption`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Files, Precision, Threads
from pocketlens.commands.refused import list_refused
from pocketlens.console import out, out_json, printable, say
from pocketlens.core.errors import CloudError

if TYPE_CHECKING:
    from pocketlens.core.captions import CaptionFallback
    from pocketlens.core.events import EventSink

__all__ = ["caption"]


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
    return list_refused(refused, files, as_json=as_json)


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
