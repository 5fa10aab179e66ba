"""The demo: teachers → student → bundle → captions and search → report, every figure measured in the run.

::

    OUT/work/           data, reinforced shards, the training run: see `pocketlens.distill.pipeline`
    OUT/bundle/         the exported bundle
    OUT/evaluations/    one JSON file for teacher, student and each exported variant
    OUT/store.sqlite    the indexed test pictures
    OUT/telemetry/      the local event log of this run
    OUT/summary.json    every figure, flat
    OUT/report.html     the page to look at
"""

import csv
from collections.abc import Callable, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import torch

from pocketlens.core.bundle import Bundle
from pocketlens.core.errors import storage_errors
from pocketlens.demo.goals import goals
from pocketlens.demo.report import write_report
from pocketlens.demo.report_content import LossPoint, ReportContent, Stage, TargetCheck
from pocketlens.demo.showcase import captioned, searched, telemetry_facts
from pocketlens.demo.stopwatch import Stopwatch
from pocketlens.demo.summary import Summary, summarise, write_summary
from pocketlens.demo.tables import comparison_rows, variant_rows
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.evaluation import (
    Evaluation,
    Judged,
    JudgedStudent,
    JudgedTeachers,
    evaluate,
)
from pocketlens.distill.pipeline import (
    Report,
    Workspace,
    data_words,
    open_teachers,
    prepare_data,
    reinforce_data,
    teacher_records,
    train_student,
)
from pocketlens.distill.recipe import Recipe, read_recipe
from pocketlens.distill.scenes import read_split
from pocketlens.distill.students.student import load_student
from pocketlens.export import Evaluation as ExportEvaluation
from pocketlens.export import ExportRecipe, Samples, export_student, load_recipe
from pocketlens.export.graphs import student_graphs
from pocketlens.export.judging import fitted_confidence, judged_variants
from pocketlens.export.latency import machine_name
from pocketlens.telemetry import EventLog, purge

__all__ = ["Mode", "Outcome", "run_demo"]

Mode = Literal["quick", "demo", "full"]

_CARDS = 24


class Outcome(msgspec.Struct, frozen=True):
    """What a run came to: its figures, the goals, and where the report is."""

    summary: Summary
    goals: tuple[TargetCheck, ...]
    report: Path


def run_demo(out: Path, mode: Mode, report: Report) -> Outcome:
    """Run the whole way into `out` and return what came of it.

    A run that was killed goes on from what it had finished: pictures, shards and the last checkpoint.

    Raises:
        PocketlensError: whatever the steps raise; what was finished before is kept.
    """
    watch, work = Stopwatch(), Workspace(out / "work")
    recipe, export_recipe = _recipes(mode)
    resumed = work.data.exists()  # then the stages below are cut short, and their sum is no figure
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with watch.stage("render"):
        prepare_data(recipe, work, report)
    with watch.stage("reinforce"):
        shards = reinforce_data(recipe, work, report)
    with watch.stage("train"):
        train_student(recipe, work, shards, report)
    student, tokenizer = load_student(work.student)
    teachers = open_teachers(recipe)
    test, validation = read_split(work.data, "test"), read_split(work.data, "val")
    evaluations: dict[str, Evaluation] = {}

    def judge(candidate: Bundle) -> ExportEvaluation:
        # called by the export once graphs run and before the bundle is published, so that gates see the figures
        with watch.stage("evaluate"):
            judges: list[Judged] = [JudgedTeachers(teachers.embedder, teachers.captioner)]
            judges.append(JudgedStudent(student, tokenizer))
            graphs = student_graphs(student)
            judges += [one for _, one in judged_variants(candidate, graphs, export_recipe.gates, threads=2)]
            evaluations.update(_evaluate_all(recipe, judges, test, work, out / "evaluations", report))
            quality = tuple(figure for one in evaluations.values() for figure in one.quality())
            return ExportEvaluation(quality=quality, confidence=fitted_confidence(candidate, validation, work.data))

    with watch.stage("export"):
        bundle = _export(recipe, export_recipe, work, out / "bundle", test, judge, report)
    watch.seconds["export"] -= watch.seconds["evaluate"]
    with watch.stage("use"):
        log = _fresh_log(out / "telemetry")
        cards, fallback = captioned(bundle.root, test[:_CARDS], work.data, log)
        searches = searched(bundle.root, test, work.data, out / "store.sqlite", log)
    summary = summarise(
        evaluations,
        bundle.manifest,
        seed=recipe.seed,
        mode=mode,
        student_params=student.parameter_count(),
        bundle_bytes_onnx_int8=_bytes_with_only(bundle, "onnx", "int8"),
        seconds=watch.seconds,
        resumed=resumed,
    )
    write_summary(out / "summary.json", summary)
    checks = goals(summary)
    content = ReportContent(
        title="pocketlens: from two teachers to one small student",
        seed=recipe.seed,
        created=date.today().isoformat(),
        machine=machine_name(),
        seconds=tuple(Stage(name, seconds) for name, seconds in watch.seconds.items()),
        test_pictures=len(test),
        student_params=student.parameter_count(),
        bundle_bytes=int(summary["bundle_bytes_onnx_int8"] or 0),
        cards=cards,
        searches=searches,
        variants=variant_rows(bundle.manifest, evaluations),
        comparison=comparison_rows(evaluations),
        targets=checks,
        fallback=fallback,
        telemetry=telemetry_facts(out / "telemetry"),
        loss=_loss(work.student / "metrics.csv"),
        cards_note="They are the first of the test set, not chosen.",
        interval_note="95 % bootstrap over the test pictures",
    )
    write_report(out / "report.html", content)
    return Outcome(summary, checks, out / "report.html")


def _recipes(mode: Mode) -> tuple[Recipe, ExportRecipe]:
    folder = resources.files("pocketlens.demo").joinpath("recipes")
    with resources.as_file(folder) as path:
        export_name = "export-quick.toml" if mode == "quick" else "export.toml"
        return read_recipe(path / f"{mode}.toml"), load_recipe(path / export_name)


def _export(
    recipe: Recipe,
    export_recipe: ExportRecipe,
    work: Workspace,
    out: Path,
    test: Sequence[Sample],
    judge: Callable[[Bundle], ExportEvaluation],
    report: Report,
) -> Bundle:
    train = read_split(work.data, "train")[:2000]
    return export_student(
        work.student,
        out,
        recipe=export_recipe,
        test=_samples(work, test),
        calibration=_samples(work, train),
        provenance={"recipe": recipe.name, "data": data_words(recipe)},
        teachers=teacher_records(recipe),
        licence=recipe.licence,
        name=recipe.name,
        evaluate=judge,
        progress=lambda what, done, total: report("export", done, total, what),
    )


def _samples(work: Workspace, samples: Sequence[Sample]) -> Samples:
    return Samples(work.pictures(samples), [sample.captions[0] for sample in samples])


def _evaluate_all(
    recipe: Recipe, judges: Sequence[Judged], test: Sequence[Sample], work: Workspace, out: Path, report: Report
) -> dict[str, Evaluation]:
    torch.set_num_threads(recipe.threads)
    results: dict[str, Evaluation] = {}
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for number, judged in enumerate(judges, start=1):
            results[judged.name] = evaluate(judged, test, work.data, seed=recipe.seed)
            (out / f"{judged.name}.json").write_bytes(results[judged.name].to_json())
            report("evaluate", number, len(judges), judged.name)
    return results


def _fresh_log(folder: Path) -> EventLog:
    purge(folder)
    return EventLog(folder)


def _bytes_with_only(bundle: Bundle, target: str, precision: str) -> int:
    """Return the size of the bundle if it shipped the graphs of one variant alone."""
    graphs, kept = bundle.root / "graphs", f"{target}-{precision}"
    files = [path for path in bundle.root.rglob("*") if path.is_file()]
    others = [path for path in files if graphs in path.parents and path.relative_to(graphs).parts[0] != kept]
    return sum(path.stat().st_size for path in files) - sum(path.stat().st_size for path in others)


def _loss(metrics: Path) -> tuple[LossPoint, ...]:
    with metrics.open(newline="", encoding="utf-8") as stream:
        rows = [LossPoint(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]
    return tuple(rows[:: max(1, len(rows) // 200)])
