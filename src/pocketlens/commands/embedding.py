"""`pocketlens embed`."""

from pocketlens.commands.options import AsJson, BundlePath, Engine, Files, Precision, Threads
from pocketlens.commands.refused import list_refused
from pocketlens.console import out, out_json, printable

__all__ = ["embed"]


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
    return list_refused(refused, files, as_json=as_json)
