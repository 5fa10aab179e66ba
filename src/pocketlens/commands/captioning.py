"""`pocketlens caption`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Files, Precision, Threads, Untrusted, decoded_in
from pocketlens.commands.refused import list_refused
from pocketlens.console import out, out_json, printable, say
from pocketlens.core.errors import CloudError

if TYPE_CHECKING:
    from pocketlens.core.captions import Caption, CaptionFallback
    from pocketlens.core.events import EventSink
    from pocketlens.runtime.decoding import Decoding
    from pocketlens.runtime.lens import Lens
    from pocketlens.runtime.results import Refusal

__all__ = ["caption"]


def caption(
    files: Files,
    bundle: BundlePath,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses of beam search; 1 is greedy.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Draw from a nucleus instead.")] = False,
    top_p: Annotated[
        float | None, typer.Option(help="With --sample: probability of the nucleus.", show_default="0.9")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --sample: logits are divided by it.", show_default="1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: of the draws.", show_default="0")] = None,
    num_captions: Annotated[int, typer.Option(min=1, help="Captions a picture, best first.")] = 1,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of a caption.", show_default="as the bundle allows")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What every caption begins with.")] = "",
    length_penalty: Annotated[float, typer.Option(min=0, help="Favours longer captions where several compete.")] = 0.6,
    no_repeat_ngram: Annotated[int, typer.Option(min=0, help="No n-gram of this size twice; 0 allows all.")] = 0,
    rerank: Annotated[bool, typer.Option("--rerank", help="Rank by image-text similarity as well.")] = False,
    rerank_weight: Annotated[
        float | None, typer.Option(min=0, help="With --rerank: nats a cosine of 1 is worth.", show_default="10")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write captions as they grow.")] = False,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    untrusted: Untrusted = False,
    cloud: Annotated[str | None, typer.Option(help="Address of a `pocketlens serve` to ask when unsure.")] = None,
    consent: Annotated[bool, typer.Option("--consent", help="I agree that unsure pictures are sent there.")] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="With --cloud: unsure below this confidence.")] = 0.5,
    as_json: AsJson = False,
) -> int:
    """Caption pictures; a bad one is listed and left out. Nothing leaves the device without --cloud and --consent."""
    from pocketlens.runtime import load
    from pocketlens.runtime.decoding import RERANK_WEIGHT, Beam, Decoding, Greedy, Nucleus
    from pocketlens.telemetry import sink_from_environment

    if consent and cloud is None:
        raise CloudError(
            "--consent", expected="--cloud URL beside it", found="no --cloud", remedy="Say where pictures may be sent."
        )
    _needs("--sample", sample, {"--top-p": top_p, "--temperature": temperature, "--seed": seed})
    _needs("--rerank", rerank, {"--rerank-weight": rerank_weight})
    if sample and beam > 1:
        raise typer.BadParameter("--sample draws captions, --beam searches them: give one of the two.")
    with _misuse():
        chosen = {"top_p": top_p, "temperature": temperature, "seed": seed}
        nucleus = Nucleus(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type] # as typed above
        decoding = Decoding(
            search=nucleus if sample else Beam(width=beam) if beam > 1 else Greedy(),
            num_captions=num_captions,
            max_tokens=max_tokens,
            prompt=prompt,
            length_penalty=length_penalty,
            no_repeat_ngram=no_repeat_ngram,
            rerank=rerank,
            rerank_weight=RERANK_WEIGHT if rerank_weight is None else rerank_weight,
        )
    if stream and not decoding.streams:
        raise typer.BadParameter("--stream writes one caption as it grows: not with --beam or --num-captions above 1.")
    sink = sink_from_environment()
    with _fallback(cloud, consent=consent, threshold=threshold, sink=sink) as fallback:
        lens = load(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads,
            decode=decoded_in(untrusted),
            sink=sink,
            fallback=fallback,
        )
        write = _streamed if stream else _finished
        refused = write(lens, files, decoding, as_json=as_json)
    return list_refused(refused, files, as_json=as_json)


def _finished(lens: "Lens", files: list[str], decoding: "Decoding", *, as_json: bool) -> "list[Refusal]":
    """Write a line for each caption; return what was refused."""
    from pocketlens.runtime.results import Refusal

    refused: list[Refusal] = []
    with _misuse():
        results = lens.captions(files, decoding=decoding)
    for path, result in zip(files, results, strict=True):
        if isinstance(result, Refusal):
            refused.append(result)
        else:
            _write(path, result, as_json=as_json)
    return refused


def _streamed(lens: "Lens", files: list[str], decoding: "Decoding", *, as_json: bool) -> "list[Refusal]":
    """Write a line for each piece, `file`, tab, new text, then the lines of the whole; return what was refused."""
    from pocketlens.runtime.results import Refusal

    refused: list[Refusal] = []
    with _misuse():
        pieces = lens.caption_streams(files, decoding=decoding, batch_size=1)
    for piece in pieces:
        if isinstance(piece, Refusal):
            refused.append(piece)
            continue
        path = files[piece.index]
        if piece.text:
            if as_json:
                out_json({"file": path, "piece": piece.text})
            else:
                out(f"{printable(path)}\t+\t{piece.text}")
        if piece.caption is not None:
            _write(path, piece.caption, as_json=as_json)
    return refused


def _write(path: str, caption: "Caption", *, as_json: bool) -> None:
    if as_json:
        out_json({"file": path, **_fields(caption)})
        return
    source = "" if caption.source == "device" else f"  [{caption.source}]"
    for one in (caption, *caption.alternatives):
        out(f"{printable(path)}\t{one.confidence:.2f}\t{one.text}{source}")


def _needs(option: str, given: bool, others: dict[str, object]) -> None:
    for name, value in others.items():
        if value is not None and not given:
            raise typer.BadParameter(f"{name} is for {option}, which is not given.")


@contextmanager
def _misuse() -> Iterator[None]:
    """Turn options that contradict each other or the bundle into a wrong command line."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


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
