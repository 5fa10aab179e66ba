"""From a name on the command line to systems that can be examined.

::

    builtin, open_clip:NAME, hf:NAME, FOLDER    an embedding teacher; `builtin` captions too
    EMBEDDER,CAPTIONER                          two teachers as one system
    ,CAPTIONER                                  a captioning teacher alone
    RUN                                         a student: the folder with student.json
    BUNDLE                                      every target and precision of a bundle that runs on this machine
    BUNDLE#onnx-int8                            one of them
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.errors import BundleIncomplete, DataError
from pocketlens.core.seal import file_sha256
from pocketlens.distill.evaluation.judged import Examined, JudgedLens, JudgedStudent, JudgedTeachers

__all__ = ["Opened", "Subject", "subjects_of"]

_HERE: Final = ("onnxruntime", "executorch")
_BUILTIN: Final = "builtin"


class Opened(msgspec.Struct, frozen=True, eq=False):
    """A system and who it is.

    Attributes:
        system: what is asked.
        identity: digests of its models: two systems that share one are the same model.
        id: what a student's manifest calls it, for a teacher; else its name.
        teachers: ids of the teachers that it was trained from, as far as they are recorded.
    """

    system: Examined
    identity: tuple[str, ...]
    id: str
    teachers: tuple[str, ...] = ()


class Subject(msgspec.Struct, frozen=True, eq=False):
    """A system that is opened when its turn comes, so that only one is in memory."""

    name: str
    open: Callable[[], Opened]


def subjects_of(argument: str) -> list[Subject]:
    """Return what `argument` names; see the module.

    Raises:
        BundleError: a bundle is damaged, or lacks what was asked for.
        DataError: nothing was named.
    """
    path, _, variant = argument.partition("#")
    if (Path(path) / "manifest.json").exists():
        return _bundle(Path(path), variant)
    if (Path(argument) / "student.json").exists():
        return [Subject(_folder_name(Path(argument)), partial(_open_student, Path(argument)))]
    embedder, _, captioner = argument.partition(",")
    if argument == _BUILTIN:
        captioner = _BUILTIN
    if not embedder and not captioner:
        raise DataError(
            "subject",
            expected="a teacher, a student's folder or a bundle",
            found=repr(argument),
            remedy="See docs/evaluation.md for the ways to name one.",
        )
    return [Subject(argument, partial(_open_teachers, embedder, captioner, argument))]


def _open_teachers(embedder: str, captioner: str, name: str) -> Opened:
    from pocketlens.distill.teachers.opening import open_captioner, open_embedder

    embeds = open_embedder(embedder) if embedder else None
    captions = open_captioner(captioner) if captioner else None
    identity = tuple(one.digest for one in (embeds, captions) if one is not None)
    return Opened(JudgedTeachers(embeds, captions, name=name), identity, embeds.id if embeds else name)


def _open_student(folder: Path) -> Opened:
    from pocketlens.distill.students.student import load_student

    name = _folder_name(folder)
    student, tokenizer = load_student(folder)
    digest = file_sha256(folder / "student.safetensors")
    return Opened(JudgedStudent(student, tokenizer, name=name), (digest,), name, _recorded(folder))


def _recorded(folder: Path) -> tuple[str, ...]:
    """Return the ids of the teachers in the run's recipe; a folder without a recipe has none."""
    from pocketlens.distill.recipe import read_recipe
    from pocketlens.distill.teachers.opening import embedder_card

    path = folder / "recipe.toml"
    return (embedder_card(read_recipe(path).teachers.embedder).id,) if path.exists() else ()


def _bundle(root: Path, variant: str) -> list[Subject]:
    bundle = load_bundle(root)
    graphs = [graph for graph in bundle.manifest.graphs if graph.role == "image_encoder"]
    there = {f"{graph.target}-{graph.precision}": graph.engine for graph in graphs}
    runs = [name for name, engine in there.items() if engine in _HERE and variant in ("", name)]
    if not runs:
        raise BundleIncomplete(
            f"{root}{'#' + variant if variant else ''}",
            expected="graphs that run on this machine",
            found=", ".join(there) or "no image encoder",
            remedy="Name one of its ONNX or ExecuTorch variants, or export one.",
        )
    return [Subject(f"{_folder_name(root)}#{name}", partial(_open_variant, bundle, name, there[name])) for name in runs]


def _open_variant(bundle: Bundle, variant: str, engine: str) -> Opened:
    from pocketlens.runtime.lens import load

    name, precision = f"{_folder_name(bundle.root)}#{variant}", variant.rpartition("-")[2]
    lens = load(bundle.root, engine=engine, precision=precision, tuned=False)
    hashes = (g.sha256 for g in bundle.manifest.graphs if f"{g.target}-{g.precision}" == variant)
    identity = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    teachers = tuple(teacher.id for teacher in bundle.manifest.teachers)
    return Opened(JudgedLens(lens, name=name), (identity, bundle.manifest.model_version), name, teachers)


def _folder_name(folder: Path) -> str:
    return folder.resolve().name
