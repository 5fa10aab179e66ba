"""`pocketlens embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketlens.commands.options import AsJson, BundlePath, Engine, Files, Precision, Threads, Untrusted, decoded_in
from pocketlens.commands.refused import SOME_REFUSED, list_refused
from pocketlens.console import out, out_json, printable, progress, say

if TYPE_CHECKING:
    from pocketlens.runtime import Lens
    from pocketlens.runtime.vectors.writing import Embedding

__all__ = ["embed"]

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Write all vectors of one folder, .tar or .parquet to this .npy or .parquet; goes on after a kill.",
        show_default=False,
    ),
]
Workers = Annotated[
    Literal["here", "ray"], typer.Option(help="With --out: this process, or a Ray cluster's (the extra ray).")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures of one call of the graph.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, max=178_956_970, help="Refuse larger pictures.", show_default="what the bundle says"),
]


def embed(
    files: Files,
    bundle: BundlePath,
    out_path: Out = None,
    engine: Engine = None,
    precision: Precision = None,
    threads: Threads = None,
    untrusted: Untrusted = False,
    batch_size: BatchSize = 4,
    max_pixels: MaxPixels = None,
    workers: Workers = "here",
    as_json: AsJson = False,
) -> int:
    """Embed pictures: one line each, the file and its vector. With --out: a whole folder into one file."""
    from pocketlens.runtime import load
    from pocketlens.telemetry import sink_from_environment

    if engine == "ray":
        engine, workers = None, "ray"
    if out_path is None and workers == "ray":
        raise typer.BadParameter("a cluster embeds whole folders: give --out too", param_hint="--workers")
    if out_path is not None and len(files) != 1:
        raise typer.BadParameter("one folder, .tar or .parquet at a time goes into --out", param_hint="FILE")
    lens = load(
        bundle,
        engine=engine,
        precision=precision,
        threads=threads,
        decode=decoded_in(untrusted),
        sink=sink_from_environment(),
    )
    if out_path is not None:
        if workers == "ray":
            from pocketlens.runtime.distributed.ray_embedding import embed_on_ray

            embedding: Embedding = embed_on_ray(
                bundle,
                engine=engine,
                precision=precision,
                threads=threads,
                max_pixels=max_pixels,
                decode=decoded_in(untrusted),
            )
        else:
            from pocketlens.runtime.vectors.writing import embed_here

            embedding = embed_here(lens, batch_size=batch_size, threads=threads, max_pixels=max_pixels)
        return _write(lens, files[0], out_path, embedding, max_pixels, as_json=as_json)
    return _print(lens, files, batch_size, max_pixels, as_json=as_json)


def _print(lens: "Lens", files: list[str], batch_size: int, max_pixels: int | None, *, as_json: bool) -> int:
    from pocketlens.runtime import Refusal

    refused: list[Refusal] = []
    # A single picture needs no threads, and is there sooner without them.
    threads = 1 if len(files) == 1 else None
    vectors = lens.embed_images(files, batch_size=batch_size, threads=threads, max_pixels=max_pixels)
    for path, vector in zip(files, vectors, strict=True):
        if isinstance(vector, Refusal):
            refused.append(vector)
        elif as_json:
            out_json({"file": path, "model_version": lens.model_version, "embedding": vector.tolist()})
        else:
            out(f"{printable(path)}\t{' '.join(f'{x:.6f}' for x in vector)}")
    return list_refused(refused, files, as_json=as_json)


def _write(
    lens: "Lens", source: str, path: Path, embedding: "Embedding", max_pixels: int | None, *, as_json: bool
) -> int:
    from pocketlens.runtime.vectors.sidecar import Header
    from pocketlens.runtime.vectors.writing import write_vectors

    header = Header(model_version=lens.model_version, dim=lens.dim, precision=lens.precision, max_pixels=max_pixels)
    with progress() as report:
        done = write_vectors(source, path, header, embedding, progress=lambda done, total: report("embed", done, total))
    counts = {"rows": done.rows, "resumed": done.resumed, "refused": len(done.refused)}
    if as_json:
        out_json({"out": str(path), "model_version": lens.model_version, "dim": lens.dim, **counts})
    else:
        out(
            f"{done.rows} vectors of {lens.dim}, {done.resumed} of {done.rows + len(done.refused)} pictures "
            f"from an earlier run, {len(done.refused)} refused: {printable(str(path))}"
        )
        for entry in done.refused:
            say(f"refused {entry.refused}: {entry.message}")
    return SOME_REFUSED if done.refused else 0
