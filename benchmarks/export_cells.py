"""One graph in the precisions of one target: written, run, compared with the eager module. One line of JSON a cell.

Run: python -m benchmarks.export_cells MODEL ROLE TARGET PRECISION,PRECISION --work DIR [--photos PICTURES.tar]

`benchmarks.export_table` starts this as a process of its own, so that a crash costs one cell.
"""

import argparse
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.export_models import MODELS, open_subject
from pocketlens.core.bundle import ROLES, Bundle, EmbeddingSpec, GraphRecord, Manifest, Role, TokenizerSpec
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.latency import THREADS
from pocketlens.export.lowering import graph_path
from pocketlens.export.measure import graph_records
from pocketlens.export.mil.engine import MilEngine
from pocketlens.export.parity import cosines
from pocketlens.export.reference import Feed
from pocketlens.export.stand_in import eager_answers
from pocketlens.export.targets import open_target
from pocketlens.runtime.engines import ENGINES, EngineName, open_engine

__all__ = ["Cell", "Closeness", "measure", "open_runner"]

Arrays = dict[str, NDArray[Any]]


class Closeness(msgspec.Struct, frozen=True, kw_only=True):
    """Cosine to the eager module over the held-out inputs.

    Attributes:
        minimum, mean: as it stands.
        centred: mean, after the eager module's average answer was taken off both: random weights give all
            pictures nearly the same vector, which hides what a graph loses.
    """

    minimum: float
    mean: float
    centred: float


class Cell(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """One graph in one variant.

    Attributes:
        model, role, variant: which.
        status: `works` was run here; `written` has nothing here that runs it; `failed`.
        reason: why it failed, in the exporter's words.
        runner: what ran it.
        bytes: of the file or folder.
        seconds: CPU time of the job that wrote it, which several precisions of a target share.
        peak_bytes: of that process.
        delegated, operators, parts: what a backend took, of how many, in how many parts.
        outputs: closeness by output.
    """

    model: str
    role: Role
    variant: str
    status: Literal["works", "written", "failed"]
    reason: str = ""
    runner: str = ""
    parameters: int = 0
    bytes: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    delegated: int | None = None
    operators: int | None = None
    parts: int | None = None
    outputs: dict[str, Closeness] = {}


class _Runner(msgspec.Struct, frozen=True):
    name: str
    engine: Any

    def run(self, role: Role, feed: Feed) -> Arrays:
        return cast("Arrays", self.engine.run(role, feed))


class LitertEngine:
    """A `.tflite` file with LiteRT's own interpreter, from the environment of the `litert` extra."""

    def __init__(self, path: Path, record: GraphRecord) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._record = record
        self._run = Interpreter(model_path=str(path), num_threads=THREADS).get_signature_runner()

    def run(self, role: Role, feed: Feed) -> Arrays:
        """Return the outputs by the record's names."""
        taken = {f"args_{index}": feed[spec.name] for index, spec in enumerate(self._record.inputs)}
        found = self._run(**taken)
        return {spec.name: found[f"output_{index}"] for index, spec in enumerate(self._record.outputs)}


def open_runner(record: GraphRecord, root: Path) -> _Runner | None:
    """Return what runs the graph of `record` under `root` on this machine, `None` if nothing does."""
    bundle = Bundle(root, _MANIFEST)
    chosen = {record.role: record}
    if record.engine == "coreml":
        return _Runner("torch, from the saved package", MilEngine(bundle, chosen))
    if record.engine == "litert":
        return _Runner("LiteRT", LitertEngine(root / record.path, record))
    if record.engine == "tensorrt":
        chosen = {record.role: msgspec.structs.replace(record, engine="onnxruntime")}
        return _Runner("ONNX Runtime's CPU kernels", open_engine("onnxruntime", bundle, chosen, threads=THREADS))
    if record.engine in ENGINES:
        engine = open_engine(cast("EngineName", record.engine), bundle, chosen, threads=THREADS)
        return _Runner(record.engine, engine)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Export and compare one graph in the precisions of one target.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("target")
    parser.add_argument("precisions", help="separated by commas")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--limit", type=int, default=1800, help="seconds of CPU time, then the process is ended")
    chosen = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CPU, (chosen.limit, chosen.limit + 60))
    torch.set_num_threads(THREADS)
    for cell in measure(
        chosen.model,
        chosen.role,
        chosen.target,
        chosen.precisions.split(","),
        chosen.work / chosen.model,
        chosen.photos,
    ):
        print(msgspec.json.encode(cell).decode(), flush=True)


def measure(
    model: str, role: Role, target: str, precisions: Sequence[str], root: Path, photos: Path | None
) -> Iterator[Cell]:
    """Write one graph under `root` in all `precisions` of `target`, then yield what became of each.

    Raises:
        PocketlensError: it cannot be written, or one of the files does not run.
    """
    subject = open_subject(model, role, photos)
    answer = eager_answers({role: subject.graph})
    expected = [answer(role, feed) for feed in subject.held_out]
    paths = {precision: root / graph_path(f"{target}-{precision}", role) for precision in precisions}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    taken = open_target(target).export(subject.graph, paths, subject.calibration) or {}
    seconds = time.process_time() - started
    for precision in precisions:
        variant = f"{target}-{precision}"
        (record,) = graph_records(variant, root, {role: subject.graph})
        (root / f"{variant}-{role}.json").write_bytes(msgspec.json.encode(record))
        runner, delegation = open_runner(record, root), taken.get(precision)
        yield Cell(
            model=model,
            role=role,
            variant=variant,
            status="works" if runner else "written",
            runner=runner.name if runner else "",
            parameters=subject.parameters,
            bytes=record.bytes,
            seconds=seconds,
            delegated=delegation.delegated if delegation else None,
            operators=delegation.delegated + delegation.left if delegation else None,
            parts=delegation.parts if delegation else None,
            outputs=_compared([runner.run(role, feed) for feed in subject.held_out], expected) if runner else {},
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


def _compared(found: Sequence[Mapping[str, NDArray[Any]]], expected: Sequence[Arrays]) -> dict[str, Closeness]:
    result = {}
    for name in expected[0]:
        eager = np.stack([row[name].reshape(-1) for row in expected]).astype(np.float64)
        exported = np.stack([np.asarray(row[name]).reshape(-1) for row in found]).astype(np.float64)
        plain, average = cosines(exported, eager), eager.mean(axis=0)
        centred = cosines(exported - average, eager - average)
        result[name] = Closeness(minimum=float(plain.min()), mean=float(plain.mean()), centred=float(centred.mean()))
    return result


_MANIFEST: Final = Manifest(
    name="table",
    model_version="0",
    tasks=("embed",),
    embedding=EmbeddingSpec(dim=1),
    preprocess=PreprocessSpec(height_px=1, width_px=1),
    tokenizer=TokenizerSpec(vocab_size=3, text_length=2, pad_id=0, bos_id=1, eos_id=2),
    caption=None,
    graphs=(),
    licence="unknown",
    provenance={},
)
"""Engines ask a bundle for its folder alone."""

if __name__ == "__main__":
    main()
