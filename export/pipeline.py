"""Model to bundle: lower, measure, gate, evaluate, publish. Nothing appears at `out` before the end.

If a graph needed mixed precision, what that cost is told in a folder beside it, `NAME.mixed-precision`.

The work happens in a folder beside `out`, on the same file system, which is removed whatever happens;
a bundle that stood at `out` is replaced in one step by one that passed its gates.
"""

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
    ConfidenceSpec,
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    Quality,
    TeacherRecord,
    TokenizerSpec,
    load_bundle,
    write_bundle,
)
from pocketlens.core.errors import BundleSchemaError, ExportError, storage_errors
from pocketlens.export.building import Build
from pocketlens.export.card import model_card
from pocketlens.export.device_kit import write_device_kit
from pocketlens.export.golden import draw_golden_pictures, write_golden
from pocketlens.export.golden_cases import write_vectors
from pocketlens.export.graphs import student_graphs
from pocketlens.export.licences import check_commercial
from pocketlens.export.outcomes import Watch
from pocketlens.export.recipe import ExportRecipe, needs_calibration, split_variant
from pocketlens.export.reference import Samples, calibration_feeds, load_pixels, reference_answers
from pocketlens.export.sources.agreement import check_ids
from pocketlens.export.sources.exportable import OpenedSource
from pocketlens.export.sources.opening import open_source

__all__ = ["Evaluation", "Progress", "export_student", "update_manifest"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

_CARD: Final = "MODEL_CARD.md"
_REPORTS: Final = ".mixed-precision"
_VERSION_DIGITS: Final = 12


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known only once graphs run: task quality of every variant, and fitted confidence."""

    quality: tuple[Quality, ...] = ()
    confidence: ConfidenceSpec | None = None


def export_student(
    source: Path | str,
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
    commercial: bool = False,
    evaluate: Callable[[Bundle], Evaluation] | None = None,
    progress: Progress = lambda what, done, total: None,
    keep_going: bool = False,
    watch: Watch = lambda outcome: None,
) -> Bundle:
    """Export the student in a folder, or a model of another library, as the bundle `out` and return it.

    Args:
        source: a student folder, or a name such as `open_clip:MobileCLIP2-S0`: see
            `pocketlens.export.sources.opening`.
        out: the bundle's folder; one that is there is replaced, once the new one passed its gates.
        recipe: what is exported and what it must reach.
        test: pictures and captions that parity is measured on.
        calibration: training pictures and captions that quantization ranges come from.
        name: the bundle's name.
        licence: SPDX identifier of the bundle's licence.
        teachers: who the student learnt from.
        provenance: where data and weights come from; recipe, weights' hash and system are added.
        model_version: by default the first digits of the hash of the student's configuration and weights.
        commercial: refuse licences, of teachers or data, that forbid commercial use.
        release: counts upwards with each release of the model of this name; 0 is not counted.
        evaluate: called with the finished, loadable bundle before it is published; its answer goes
            into the manifest, and the gates look at its quality figures.
        progress: see `Progress`.
        keep_going: a graph that fails stops no other; the bundle holds those that passed.
        watch: told what becomes of each graph, as it happens.

    Raises:
        DataError: the student folder does not fit.
        PictureError: one of the pictures was refused.
        ExportError: a model cannot be opened, or a target not be produced; `ParityGateFailed` or `SpeedGateFailed`:
            a graph does not reach what the recipe asks for. With `keep_going`, one `ExportError` at the end
            that names all graphs that are missing; the bundle is there by then, unless nothing passed.
        StorageFull: no space left.
    """
    opened = open_source(str(source))
    digest = opened.digest
    facts = {
        **opened.facts,
        **(provenance or {}),
        "export_recipe": msgspec.json.encode(recipe).decode(),
        "student_sha256": digest,
        "exported_on": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    if opened.own_ids is not None:
        facts["tokenizer_agreement"] = check_ids(opened, test.captions)
    manifest = _manifest(
        opened,
        name=name,
        licence=licence,
        teachers=tuple(teachers),
        model_version=model_version or digest[:_VERSION_DIGITS],
        release=release,
        provenance=facts,
    )
    if commercial:
        check_commercial(manifest)
    with _staging(out) as staging:
        staged = staging / "bundle"
        staged.mkdir()
        (staged / manifest.tokenizer.path).write_text(opened.tokenizer_json, encoding="utf-8")
        facts |= _golden(staged, manifest, opened, recipe, test)
        manifest = msgspec.structs.replace(manifest, provenance=facts)
        build = Build(
            recipe,
            staging,
            roles=tuple(opened.model.modules),
            keep_going=keep_going,
            watch=watch,
            reports=out.with_name(f"{out.name}{_REPORTS}"),
        )
        graphs = _graphs(build, str(source), opened, manifest, recipe, test, calibration, progress)
        manifest = msgspec.structs.replace(manifest, graphs=tuple(graphs))
        candidate = _publish(staging / "candidate", manifest, staged)
        if evaluate is not None:
            evaluation = evaluate(candidate)
            kept = build.evaluated(evaluation.quality, manifest.graphs, candidate.root)
            manifest = msgspec.structs.replace(
                manifest, graphs=tuple(kept), quality=evaluation.quality, confidence=evaluation.confidence
            )
        bundle = _publish(out, manifest, candidate.root)
    build.finish()
    return bundle


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
    opened: OpenedSource,
    *,
    name: str,
    licence: str,
    teachers: tuple[TeacherRecord, ...],
    model_version: str,
    release: int,
    provenance: dict[str, str],
) -> Manifest:
    model, tokenizer = opened.model, opened.tokenizer
    return Manifest(
        name=name,
        model_version=model_version,
        release=release,
        tasks=model.tasks,
        embedding=EmbeddingSpec(dim=model.embed_dim),
        preprocess=model.preprocess,
        tokenizer=TokenizerSpec(
            vocab_size=tokenizer.vocab_size,
            text_length=model.text_length,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        caption=model.caption,
        graphs=(),
        teachers=teachers,
        licence=licence,
        provenance=provenance,
    )


def _golden(
    staged: Path,
    manifest: Manifest,
    opened: OpenedSource,
    recipe: ExportRecipe,
    test: Samples,
) -> dict[str, str]:
    """Write golden files and device kit; return what the manifest's provenance has to say about them."""
    pictures = draw_golden_pictures(staged, recipe.golden_samples, seed=recipe.seed)
    reads = "text_encoder" in opened.model.modules
    texts = list(test.captions[: recipe.golden_samples]) if reads else []
    pixels = load_pixels(pictures, manifest.preprocess)
    answers = reference_answers(opened.model, opened.tokenizer, pixels, opened.tokenizer.encode_batch(texts))
    write_golden(staged, pictures, texts, answers)

    def embed(levels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = opened.model.image(torch.from_numpy(levels))[0].numpy()
        return found

    write_vectors(
        staged,
        manifest.preprocess,
        pictures=[picture.name for picture in pictures],
        pixels=pixels,
        seed=recipe.seed,
        embed=embed,
        mean=opened.model.mean,
        std=opened.model.std,
    )
    try:
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
    except (ExportError, BundleSchemaError) as error:
        if opened.own_ids is None and "text_encoder" in opened.model.modules:
            raise
        # A foreign tokenizer that the C header does not implement: the bundle is whole without the kit.
        return {"device_kit": f"left out, for the tokenizer: expected {error.expected}; found {error.found}"}
    return {}


def _graphs(
    build: Build,
    source: str,
    opened: OpenedSource,
    manifest: Manifest,
    recipe: ExportRecipe,
    test: Samples,
    calibration: Samples,
    progress: Progress,
) -> list[GraphRecord]:
    """Lower, measure and gate all variants; return the records of the graphs that ship."""
    model, tokenizer = opened.model, opened.tokenizer
    # Without calibration one feed is enough, for timing: a cache of BLIP's has 44 MB.
    calibrated = any(needs_calibration(split_variant(variant)[1]) for variant in recipe.variants)
    drawn = calibration.draw(recipe.calibration_samples if calibrated else 1, seed=recipe.seed)
    feeds = calibration_feeds(
        model,
        tokenizer,
        load_pixels(drawn.pictures, manifest.preprocess),
        tokenizer.encode_batch(drawn.captions),
        seed=recipe.seed,
    )
    reference = reference_answers(
        model,
        tokenizer,
        load_pixels(test.pictures, manifest.preprocess),
        tokenizer.encode_batch(test.captions),
    )
    return build.graphs(
        source,
        student_graphs(model),
        manifest=manifest,
        feeds=feeds,
        reference=reference,
        progress=progress,
    )
