"""`pocketlens video`: what is to be seen in a video, and when."""

from typing import Annotated

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Precision, Threads
from pocketlens.console import out, out_json

__all__ = ["video"]


def video(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A video file.", show_default=False)],
    bundle: BundlePath,
    captions: Annotated[
        bool | None, typer.Option("--captions/--no-captions", help="Caption each segment.", show_default="if it can")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Within a scene, look again after so many seconds.")] = 4.0,
    same: Annotated[float, typer.Option(min=0.01, max=1.0, help="Least cosine of what is kept once.")] = 0.94,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> int:
    """Show the segments of a video: times, caption and confidence; with --json the embeddings too."""
    from pocketlens.runtime import load
    from pocketlens.runtime.video import Sampling, video_segments
    from pocketlens.telemetry import sink_from_environment

    lens = load(bundle, engine=engine, precision=precision, threads=threads, sink=sink_from_environment())
    sampling = Sampling(interval_s=interval)
    for segment in video_segments(lens, file, captions=captions, same_cosine=same, sampling=sampling):
        if as_json:
            out_json(
                {
                    "spans": segment.spans,
                    "time_s": segment.time_s,
                    "caption": segment.caption,
                    "embedding": segment.embedding.tolist(),
                }
            )
            continue
        spans = ", ".join(f"{_clock(start)}-{_clock(end)}" for start, end in segment.spans)
        said = "" if segment.caption is None else f"\t{segment.caption.confidence:.2f}\t{segment.caption.text}"
        out(f"{spans}{said}")
    return 0


def _clock(seconds: float) -> str:
    """Return hours (if any), minutes and seconds with a tenth."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"
