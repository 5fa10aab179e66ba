"""The stage `export`: the student as an int8 bundle, judged on `test` through the runtime, beside the teacher."""

import json
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

import pocketlens
from benchmarks.flickr8k.captioner import write_captions
from benchmarks.flickr8k.heads import embed_grids, embed_tokens
from benchmarks.flickr8k.judged import judged_captions, judged_recall
from benchmarks.flickr8k.place import Place
from benchmarks.flickr8k.small import cleaned
from benchmarks.flickr8k.teaching import open_pairs, open_teacher
from pocketlens.core.bundle import ROLES, Bundle, TeacherRecord, load_bundle
from pocketlens.distill.data.sample import as_source
from pocketlens.distill.evaluation.judged import JudgedLens, JudgedStudent
from pocketlens.distill.evaluation.metrics import Figure
from pocketlens.distill.students.student import load_student
from pocketlens.export import ExportRecipe, Samples, export_student
from pocketlens.export.recipe import Gates
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.results import Refusal

__all__ = ["TEACHERS", "export_and_judge"]

TEACHERS: Final = (
    TeacherRecord(
        id="mobilenetv2_100 + all-MiniLM-L6-v2, heads on Flickr8k", licence="research-only", task="embedding"
    ),
    TeacherRecord(id="mobilenetv2_100, decoder on Flickr8k", licence="research-only", task="captioning"),
)
_ENGINES: Final = {"onnx": "onnxruntime", "executorch": "executorch"}
_RECIPE: Final = ExportRecipe(
    variants=("onnx-int8", "executorch-int8"),
    calibration_samples=128,
    latency_runs=10,
    # The limits are the gates' own. Speed is noted, not judged: this processor's word is not a phone's.
    gates=Gates(accept_slower=ROLES),
)
_GATED: Final = 32
"""Pictures that the gates are measured on."""

_BEAMS: Final = 3
_VIEWS: Final = {"teacher, one view": 1, "teacher, mirrored too": 2}


def export_and_judge(place: Place) -> None:
    """Export the student and judge teacher, student and each int8 variant on `test`; a finished row is not repeated."""
    captions = place.split("test").captions
    pictures = _unpacked(place, "test")
    bundle = _bundle(place)
    path = place.out / "export.json"
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {"test": {}}
    found["bytes"] = _bytes(bundle)

    def row(name: str, figures: Callable[[], dict[str, Figure]]) -> None:
        if name not in found["test"]:
            found["test"][name] = msgspec.to_builtins(figures())
            place.write("export", found)

    for name, views in _VIEWS.items():
        row(name, partial(_teacher_recall, place, views))
    row("student, eager", lambda: _judged(JudgedStudent(*load_student(place.out / "student")), pictures, captions))
    for target, engine in _ENGINES.items():
        name = f"{target}-int8"
        lens = pocketlens.load(bundle.root, engine=engine, precision="int8", threads=1)
        row(name, partial(_judged, JudgedLens(lens, name=name), pictures, captions))
        if target == "onnx":
            row(f"{name}, {_BEAMS} beams", partial(_searched, lens, pictures, captions))
    for beams in (1, _BEAMS):
        row(f"teacher, {beams} beams" if beams > 1 else "teacher, greedy", partial(_teacher_captions, place, beams))


def _bundle(place: Place) -> Bundle:
    """Return the exported student, exported unless it is there; gated on pictures of `dev`."""
    root = place.out / "bundle"
    if root.exists():
        return load_bundle(root)
    return export_student(
        place.out / "student",
        root,
        recipe=_RECIPE,
        test=_samples(place, "dev", _GATED),
        calibration=_samples(place, "train"),
        name="flickr8k-small",
        licence="research-only",
        teachers=TEACHERS,
        provenance={"data": "Flickr8k, Karpathy's split; research use only"},
        progress=lambda what, done, total: print(f"export: {what} {done}/{total}", file=sys.stderr, flush=True),
    )


def _samples(place: Place, name: str, count: int | None = None) -> Samples:
    """Return the first `count` pictures of a split with one caption each; all by default."""
    captions = [cleaned(texts[0]) for texts in place.split(name).captions]
    return Samples(_unpacked(place, name)[:count], captions[:count])


def _teacher_recall(place: Place, views: int) -> dict[str, Figure]:
    """Return the embedding teacher's figures on `test`; two views: the picture and its mirror image."""
    pairs, features = open_pairs(place), place.features("test")
    images = embed_grids(pairs, features)[:views].mean(axis=0)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return judged_recall(images, embed_tokens(pairs, features))


def _teacher_captions(place: Place, beams: int) -> dict[str, Figure]:
    """Return the captioning teacher's figures on `test`, of the picture as it is."""
    taught, grids = open_teacher(place), place.features("test").grids[0]
    rows = write_captions(taught.captioner, taught.words, grids, beams=beams)
    return judged_captions([text for text, _ in rows], place.split("test").captions)


def _judged(judged: JudgedStudent | JudgedLens, pictures: list[Path], captions: list[list[str]]) -> dict[str, Figure]:
    images = judged.embed_images(pictures)
    texts = judged.embed_texts([cleaned(text) for of_picture in captions for text in of_picture])
    written = [caption.text for caption in judged.captions(pictures)]
    return judged_recall(np.asarray(images), np.asarray(texts)) | judged_captions(written, captions)


def _searched(lens: Lens, pictures: list[Path], captions: list[list[str]]) -> dict[str, Figure]:
    """Return the figures of the runtime's beam search."""
    texts: list[str] = []
    for caption in lens.captions(map(as_source, pictures), beam=_BEAMS):
        if isinstance(caption, Refusal):
            raise caption.error
        texts.append(caption.text)
    return judged_captions(texts, captions)


def _bytes(bundle: Bundle) -> dict[str, int]:
    """Return the bytes of the four graphs together, by variant."""
    sizes: dict[str, int] = {}
    for graph in bundle.manifest.graphs:
        name = f"{graph.target}-{graph.precision}"
        sizes[name] = sizes.get(name, 0) + graph.bytes
    return sizes


def _unpacked(place: Place, name: str) -> list[Path]:
    """Return the picture files of a split in the order of its captions, unpacked once."""
    folder = place.out / "pictures" / name
    rows = [json.loads(line) for line in (place.data / "flickr8k" / f"{name}.jsonl").read_text("utf-8").splitlines()]
    paths = [folder / Path(row["image"]).name for row in rows]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(place.data / "flickr8k" / f"{name}.tar") as tar:
            for member in tar.getmembers():
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None:
                    (folder / Path(member.name).name).write_bytes(stream.read())
    return paths
