"""Student to bundle: lower, measure, gate, evaluate, publish. Nothing appears at `out` before the end.

The work happens in a folder beside `out`, on the same file system, which is removed whatever happens;
a bundle that stood at `out` is replaced in one step by one that passed its gates.
"""

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pocketlens.core.bundle import (
    Bundle,
    CaptionSpec,
    ConfidenceSpec,
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    Quality,
    Role,
    TeacherRecord,
    TokenizerSpec,
    load_bundle,
    write_bundle,
)
from pocketlens.core.errors import storage_errors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.student import Student, load_student, preprocess_spec
from pocketlens.export.card import model_card
from pocketlens.export.device_kit import write_device_kit
from pocketlens.export.gates import check_parity, check_quality, check_speed
from pocketlens.export.golden import draw_golden_pictures, write_golden
from pocketlens.export.golden_cases import write_vectors
from pocketlens.export.graphs import student_graphs
from pocketlens.export.lowering import lower
from pocketlens.export.measure import graph_records, measured
from pocketlens.export.recipe import ExportRecipe, split_variant
from pocketlens.export.reference import Feed, Samples, calibration_feeds, load_pixels, reference_answers

__all__ = ["Evaluation", "Progress", "export_student", "update_manifest"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

_CARD: Final = "MODEL_CARD.md"
_VERSION_DIGITS: Final = 12


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known only once graphs run: task quality of every variant, and fitted confidence."""

    quality: tuple[Quality, ...] = ()
    confidence: ConfidenceSpec | None = None


def export_student(
    student_folder: Path,
    out: Path,
    *,
    recipe: ExportRecipe,
    test: Samples,
    calibration: Samples,
    name: str,
    licence: str,
    teachers: Sequence[TeacherRecord] = (),
    provenance: Mapping[str, str] | None = None,
    model_version: str | None = None,
    release: int = 0,
    evaluate: Callable[[Bundle], Evaluation] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Bundle:
    """Export the student in `student_folder` as the bundle `out` and return it.

    Args:
        student_folder: `student.json`, `student.safetensors` and `tokenizer.json`.
        out: the bundle's folder; one that is there is replaced, once the new one passed its gates.
        recipe: what is exported and what it must reach.
        test: pictures and captions that parity is measured on.
        calibration: training pictures and captions that quantization ranges come from.
        name: the bundle's name.
        licence: SPDX identifier of the bundle's licence.
        teachers: who the student learnt from.
        provenance: where data and weights come from; recipe, weights' hash and system are added.
        model_version: by default the first digits of the hash of the student's configuration and weights.
        release: counts upwards with each release of the model of this name; 0 is not counted.
        evaluate: called with the finished, loadable bundle before it is published; its answer goes
            into the manifest, and the gates look at its quality figures.
        progress: see `Progress`.

    Raises:
        DataError: the student folder does not fit.
        PictureError: one of the pictures was refused.
        ExportError: a target cannot be produced; `ParityGateFailed` or `SpeedGateFailed`: a graph does
            not reach what the recipe asks for.
        StorageFull: no space left.
    """
    student, tokenizer = load_student(student_folder)
    digest = _student_digest(student_folder)
    facts = {
        **(provenance or {}),
        "export_recipe": msgspec.json.encode(recipe).decode(),
        "student_sha256": digest,
        "exported_on": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    manifest = _manifest(
        student,
        tokenizer,
        name=name,
        licence=licence,
        teachers=tuple(teachers),
        model_version=model_version or digest[:_VERSION_DIGITS],
        release=release,
        provenance=facts,
    )
    with _staging(out) as staging:
        staged = staging / "bundle"
        staged.mkdir()
        shutil.copyfile(student_folder / "tokenizer.json", staged / manifest.tokenizer.path)
        _golden(staged, manifest, student, tokenizer, recipe, test)
        graphs = _graphs(student_folder, student, tokenizer, manifest, staging, recipe, test, calibration, progress)
        manifest = msgspec.structs.replace(manifest, graphs=tuple(check_speed(graphs, recipe.gates)))
        candidate = _publish(staging / "candidate", manifest, staged)
        if evaluate is not None:
            evaluation = evaluate(candidate)
            check_quality(evaluation.quality, recipe.gates, variants=[v for v in recipe.variants if "fp32" not in v])
            manifest = msgspec.structs.replace(manifest, quality=evaluation.quality, confidence=evaluation.confidence)
        return _publish(out, manifest, candidate.root)


def update_manifest(root: Path, **changes: object) -> Bundle:
    """Return the bundle at `root` with fields of its manifest changed, card and sums rewritten.

    The bundle is replaced in one step: whoever opens it sees the old one or the new one.

    Args:
        root: a bundle.
        changes: new values by the name of a `Manifest` field.

    Raises:
        BundleError: there is no valid bundle at `root`, or it would not be one afterwards.
        StorageFull: no space left; the bundle is as it was.
    """
    manifest = msgspec.structs.replace(load_bundle(root).manifest, **changes)
    with _staging(root) as staging:
        staged = staging / "bundle"
        shutil.copytree(root, staged)
        return _publish(root, manifest, staged)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that is gone afterwards."""
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.export-") as folder:
            yield Path(folder)


def _publish(root: Path, manifest: Manifest, staged: Path) -> Bundle:
    (staged / _CARD).write_text(model_card(manifest), encoding="utf-8")
    return write_bundle(root, manifest, staged)


def _manifest(
    student: Student,
    tokenizer: Tokenizer,
    *,
    name: str,
    licence: str,
    teachers: tuple[TeacherRecord, ...],
    model_version: str,
    release: int,
    provenance: dict[str, str],
) -> Manifest:
    config = student.config
    return Manifest(
        name=name,
        model_version=model_version,
        release=release,
        tasks=("embed", "caption"),
        embedding=EmbeddingSpec(dim=config.embed_dim),
        preprocess=preprocess_spec(config),
        tokenizer=TokenizerSpec(
            vocab_size=tokenizer.vocab_size,
            text_length=config.text_length,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        caption=CaptionSpec(prefix_length=student.caption_decoder.visual_tokens, max_tokens=config.caption_tokens),
        graphs=(),
        teachers=teachers,
        licence=licence,
        provenance=provenance,
    )


def _golden(
    staged: Path,
    manifest: Manifest,
    student: Student,
    tokenizer: Tokenizer,
    recipe: ExportRecipe,
    test: Samples,
) -> None:
    pictures = draw_golden_pictures(staged, recipe.golden_samples, seed=recipe.seed)
    texts = list(test.captions[: recipe.golden_samples])
    pixels = load_pixels(pictures, manifest.preprocess)
    answers = reference_answers(student, tokenizer, pixels, tokenizer.encode_batch(texts))
    write_golden(staged, pictures, texts, answers)

    def embed(levels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = student.image_encoder(torch.from_numpy(levels))[0].numpy()
        return found

    write_vectors(
        staged,
        manifest.preprocess,
        pictures=[picture.name for picture in pictures],
        pixels=pixels,
        seed=recipe.seed,
        embed=embed,
        mean=student.config.mean,
        std=student.config.std,
    )
    write_device_kit(
        staged,
        name=manifest.name,
        model_version=manifest.model_version,
        preprocess=manifest.preprocess,
        tokenizer_json=staged / manifest.tokenizer.path,
        tokenizer=manifest.tokenizer,
        caption=manifest.caption,
        texts=texts,
    )


def _graphs(
    student_folder: Path,
    student: Student,
    tokenizer: Tokenizer,
    manifest: Manifest,
    staging: Path,
    recipe: ExportRecipe,
    test: Samples,
    calibration: Samples,
    progress: Progress,
) -> list[GraphRecord]:
    """Lower and measure all variants, gate their parity, return the records of those that ship."""
    shipped: list[str] = list(recipe.variants)
    roots = dict.fromkeys(shipped, staging / "bundle")
    for target, precision in map(split_variant, shipped):
        if precision == "int8":
            roots.setdefault(f"{target}-fp32", staging / "twins")
    drawn = calibration.draw(recipe.calibration_samples, seed=recipe.seed)
    feeds = calibration_feeds(
        student,
        tokenizer,
        load_pixels(drawn.pictures, manifest.preprocess),
        tokenizer.encode_batch(drawn.captions),
        seed=recipe.seed,
    )
    lower(student_folder, roots, feeds, workers=recipe.workers, progress=progress)
    reference = reference_answers(
        student,
        tokenizer,
        load_pixels(test.pictures, manifest.preprocess),
        tokenizer.encode_batch(test.captions),
    )
    graphs = student_graphs(student)
    filled = measured(
        {variant: graph_records(variant, root, graphs) for variant, root in roots.items()},
        roots,
        manifest=manifest,
        reference=reference,
        rows=_first_rows(feeds),
        runs=recipe.latency_runs,
        progress=lambda what: progress(what, 0, 0),
    )
    for variant in roots:
        check_parity(filled[variant], recipe.gates)
    return [record for variant in shipped for record in filled[variant]]


def _first_rows(feeds: Mapping[Role, Sequence[Feed]]) -> dict[Role, Feed]:
    return {role: rows[0] for role, rows in feeds.items()}


def _student_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("student.json", "student.safetensors", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
