"""Bundles: export, verify, inspect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pocketlens.commands.integrity import Keys
from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress, say
from pocketlens.core.errors import BundleError, BundleIncomplete

if TYPE_CHECKING:
    from pocketlens.core.bundle import Bundle
    from pocketlens.export import ExportRecipe

__all__ = ["export", "inspect", "verify"]

_CALIBRATION_POOL = 2000  # training pictures that calibration draws from

BundleArgument = Annotated[
    Path,
    # readable=False: not to be checked there, for what cannot be read is a typed error of ours
    typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False, readable=False),
]


def inspect(bundle: BundleArgument, as_json: AsJson = False) -> int:
    """Show what a bundle holds, after verifying every byte of it."""
    from pocketlens.core.bundle import load_bundle

    loaded = load_bundle(bundle)
    manifest = loaded.manifest
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
    for line in _here(loaded):
        out(line)
    return 0


def _here(bundle: "Bundle") -> list[str]:
    """Return for each role what runs it on this machine, and why; nothing for a bundle that nothing here runs."""
    from pocketlens.runtime.selection import plan_engines

    try:
        plan = plan_engines(bundle)
    except BundleIncomplete:
        return []
    chosen = {role: chain[0] for role, chain in plan.chains.items()}
    return [f"{role} here: {first.spec} {first.record.precision} ({plan.chosen_by})" for role, first in chosen.items()]


def verify(
    bundle: BundleArgument,
    key: Keys = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Try every graph in a child process first.")] = True,
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
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A training run (the folder with student.json), `open_clip:NAME` or `hf:NAME`."
        ),
    ],
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Where the bundle goes.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="For a run: its WORK folder, whose pictures calibrate and judge."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="FILE.jsonl", help="For another model: captioned pictures; see the docs."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="An export recipe (TOML): see docs/recipes.md.")] = None,
    target: Annotated[
        str, typer.Option("--target", help="Targets or variants by commas, or `all`, instead of the recipe's.")
    ] = "",
    precision: Annotated[str, typer.Option("--precision", help="With --target: these precisions only.")] = "",
    name: Annotated[str | None, typer.Option(help="The bundle's name; by default the model's.")] = None,
    licence: Annotated[str | None, typer.Option(help="For another model: the bundle's licence, an SPDX id.")] = None,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Refuse licences that forbid commercial use.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Export a student, or a model of another library; a graph that fails its gate fails the export."""
    from pocketlens.export import ExportRecipe, load_recipe
    from pocketlens.export.licences import licence_warnings
    from pocketlens.export.recipe import choose_variants
    from pocketlens.export.sources import is_direct

    plan = load_recipe(recipe) if recipe else ExportRecipe()
    if target:
        wanted = choose_variants(target.split(","), precision.split(",") if precision else ())
        plan = msgspec.structs.replace(plan, variants=wanted)
    if is_direct(source):
        from pocketlens.export.sources.exporting import export_direct

        if pictures is None:
            raise typer.BadParameter("a direct export needs --pictures FILE.jsonl: see docs/direct-export.md")
        with progress() as report:
            bundle = export_direct(
                source,
                out_folder,
                recipe=plan,
                pictures=pictures,
                name=name,
                licence=licence,
                commercial=commercial,
                progress=lambda what, done, total: report("export", done, total, what),
            )
    else:
        if data is None:
            raise typer.BadParameter("the export of a training run needs --data WORK")
        bundle = _export_run(
            Path(source), data, out_folder, plan, name or "student", commercial=commercial, keep_going=bool(target)
        )
    for line in licence_warnings(bundle.manifest):
        say(line)
    return inspect(bundle.root, as_json=as_json)


def _export_run(
    run: Path, data: Path, out_folder: Path, plan: "ExportRecipe", name: str, *, commercial: bool, keep_going: bool
) -> "Bundle":
    """Export the student of a training run and return its bundle; `keep_going` leaves out what fails."""
    from pocketlens.distill.data.sample import read_samples
    from pocketlens.distill.pipeline import Workspace, data_words, teacher_records
    from pocketlens.distill.recipe import read_recipe
    from pocketlens.distill.students.student import load_student
    from pocketlens.export import Samples, export_student
    from pocketlens.export.judging import judge_run
    from pocketlens.outcome_table import outcome_table

    space, trained = Workspace(data), read_recipe(run / "recipe.toml")
    test, train = read_samples(space.data, "test")[:], read_samples(space.data, "train")[:_CALIBRATION_POOL]
    captioned = bool(test) and all(sample.captions for sample in test)
    with outcome_table() as watch:
        judge = judge_run(
            *load_student(run),
            test,
            space.data,
            validation=read_samples(space.data, "val")[:] if (space.data / "val.jsonl").exists() else [],
            gates=plan.gates,
            seed=trained.seed,
            progress=lambda done, total, who: say(f"evaluated {who}, {done} of {total}"),
        )
        return export_student(
            run,
            out_folder,
            recipe=plan,
            test=Samples(space.pictures(test), [sample.captions[0] for sample in test if sample.captions]),
            calibration=Samples(space.pictures(train), [sample.captions[0] for sample in train if sample.captions]),
            name=name,
            licence=trained.licence,
            teachers=teacher_records(trained),
            provenance={"recipe": trained.name, "data": data_words(trained)},
            commercial=commercial,
            evaluate=judge if captioned else None,
            keep_going=keep_going,
            watch=watch,
        )
