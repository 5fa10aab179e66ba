"""Bundles: export, verify, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from pocketlens.commands.integrity import Keys
from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress, say
from pocketlens.core.errors import BundleError

__all__ = ["export", "inspect", "verify"]

BundleArgument = Annotated[
    Path,
    # readable=False: not to be checked there, for what cannot be read is a typed error of ours
    typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False, readable=False),
]


def inspect(bundle: BundleArgument, as_json: AsJson = False) -> int:
    """Show what a bundle holds, after verifying every byte of it."""
    from pocketlens.core.bundle import load_bundle

    manifest = load_bundle(bundle).manifest
    if as_json:
        out_json(manifest)
        return 0
    spec = manifest.preprocess
    out(f"{manifest.name}  version {manifest.model_version}  licence {manifest.licence}")
    out(f"tasks {', '.join(manifest.tasks)}; embedding {manifest.embedding.dim} x float32, {manifest.embedding.metric}")
    out(f"pixels {spec.width_px} x {spec.height_px}, {spec.fit}, {spec.filter}")
    for teacher in manifest.teachers:
        out(f"teacher {teacher.id} ({teacher.task}), licence {teacher.licence}")
    out("role\ttarget\tprecision\tbytes\tp50 ms\tparity\tpreferred")
    for graph in manifest.graphs:
        latency = f"{graph.latency.p50_ms:.2f}" if graph.latency else "-"
        parity = f"{graph.parity.metric} {graph.parity.mean:.4f}" if graph.parity else "-"
        preferred = "yes" if graph.preferred else "no"
        out(f"{graph.role}\t{graph.target}\t{graph.precision}\t{graph.bytes}\t{latency}\t{parity}\t{preferred}")
        for note in graph.notes:
            out(f"\t{note}")
    return 0


def verify(
    bundle: BundleArgument,
    key: Keys = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try every graph in a child process first.")
    ] = True,
    tensors: Annotated[
        Path | None,
        typer.Option(
            "--tensors", metavar="DIR", help="Diagnose a port: what another device made of the golden inputs."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="With --tensors: the precision of that device's graphs.")] = "fp32",
    as_json: AsJson = False,
) -> int:
    """Check every byte of a bundle, then its golden files: pixels, embeddings and captions on this machine."""
    from pocketlens.core.bundle import load_bundle
    from pocketlens.core.signature import read_public_key
    from pocketlens.export import verify_bundle
    from pocketlens.runtime.probe import probe_graphs

    loaded = load_bundle(bundle, trusted_keys=[read_public_key(file) for file in key or ()])
    if tensors is not None:
        return _diagnose(bundle, tensors, precision, as_json=as_json)
    if probe:
        probe_graphs(loaded)
    report = verify_bundle(bundle)
    if as_json:
        out_json(report)
    else:
        for check in report.checks:
            mark = "ok  " if check.passed else "FAIL"
            out(f"{mark}\t{check.stage}\t{check.subject}\t{check.figure:.6f}\t(at least {check.limit:g})")
        for variant in report.skipped:
            say(f"skipped {variant}: its engine is not on this machine")
        say(f"{report.model_version}: {'verified' if report.passed else 'NOT verified'}")
    return 0 if report.passed else BundleError.exit_code


def _diagnose(bundle: Path, tensors: Path, precision: str, *, as_json: bool) -> int:
    """Print which stage of a port is off; see docs/verify.md."""
    from pocketlens.export import diagnose_tensors

    diagnosis = diagnose_tensors(bundle, tensors, precision=precision)
    if as_json:
        out_json(diagnosis)
    else:
        for found in diagnosis.findings:
            figures = f"expected {found.expected}; found {found.found}. {found.remedy}"
            out(f"FAIL\t{found.stage}\t{found.certainty}\t{found.cause}\t{figures}")
        say(f"{diagnosis.handed_in} answers; not reached: {', '.join(diagnosis.untested) or 'nothing'}")
    return 0 if diagnosis.passed else BundleError.exit_code


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run: the folder with student.json.")],
    data: Annotated[
        Path,
        typer.Option("--data", help="The run's WORK folder: its pictures calibrate and judge.", show_default=False),
    ],
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Where the bundle goes.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="An export recipe (TOML): see docs/recipes.md.")] = None,
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "student",
    as_json: AsJson = False,
) -> int:
    """Export a student to every target of the recipe; a graph that fails its gate fails the export."""
    from pocketlens.distill.pipeline import Workspace, teacher_records
    from pocketlens.distill.recipe import read_recipe
    from pocketlens.distill.scenes import read_split
    from pocketlens.export import ExportRecipe, Samples, export_student, load_recipe

    plan, space, trained = (
        load_recipe(recipe) if recipe else ExportRecipe(),
        Workspace(data),
        read_recipe(run / "recipe.toml"),
    )
    test, train = (read_split(space.data, split) for split in ("test", "train"))
    with progress() as report:
        bundle = export_student(
            run,
            out_folder,
            recipe=plan,
            test=Samples(space.pictures(test), [sample.captions[0] for sample in test]),
            calibration=Samples(space.pictures(train), [sample.captions[0] for sample in train]),
            name=name,
            licence=trained.licence,
            teachers=teacher_records(trained),
            provenance={"recipe": trained.name},
            progress=lambda what, done, total: report("export", done, total, what),
        )
    return inspect(bundle.root, as_json=as_json)
