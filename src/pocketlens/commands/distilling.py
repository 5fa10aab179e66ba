"""Teachers and pictures to a student: the whole way, or one step at a time.

Every command reads the recipe, and looks whether the folders it names are there, before it imports
torch and before anything is made: a mistake is told at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress, say
from pocketlens.core.errors import PocketlensError, TrainingError

if TYPE_CHECKING:
    from pocketlens.distill.evaluation import Judged
    from pocketlens.distill.recipe import Recipe

__all__ = ["app", "needs_distill"]

RecipePath = Annotated[
    Path,
    # readable=False: not to be checked there, for what cannot be read is a typed error of ours
    typer.Argument(metavar="RECIPE", help="A recipe (TOML).", show_default=False, readable=False),
]
WorkPath = Annotated[Path, typer.Option("--work", "-w", help="Folder of data, shards and the run.", show_default=False)]


class _RunByDefault(TyperGroup):
    """`distill RECIPE` means `distill run RECIPE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Put `run` in front of what is no command and no option."""
        known = bool(args) and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else ["run", *args])


app = typer.Typer(cls=_RunByDefault, help="Distil: `pocketlens distill RECIPE --work DIR`.", no_args_is_help=True)


@contextmanager
def needs_distill(what: str, kind: type[PocketlensError] = TrainingError) -> Iterator[None]:
    """Say which extra is missing, as an error of `kind`, when the imports inside find no package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise kind(
            what,
            expected="the packages of the extra [distill]",
            found=f"no module {error.name}",
            remedy='Install them with `pip install "pocketlens[distill]"`.',
        ) from error


@app.command("run")
def run(recipe: RecipePath, work: WorkPath, as_json: AsJson = False) -> int:
    """Do all steps: data, reinforce, train, evaluate. What is finished is kept; a killed run goes on.

    A test split without captions, as a photo library's, cannot be judged: the student's folder is printed instead.
    """
    plan = _checked(recipe)
    with needs_distill("pocketlens distill"):
        from pocketlens.distill.data.sample import read_samples
        from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data, train_student

    space = Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        train_student(plan, space, reinforce_data(plan, space, report), report)
    captioned = [bool(sample.captions) for sample in read_samples(space.data, "test")]
    if not captioned or not all(captioned):
        say("not judged: the test split has no pictures, or some without a caption to compare with")
        out_json({"student": space.student}) if as_json else out(str(space.student))
        return 0
    return evaluate(recipe, work, as_json=as_json)


@app.command("reinforce")
def reinforce(recipe: RecipePath, work: WorkPath, as_json: AsJson = False) -> int:
    """Make the data set and ask the teachers about every picture, once."""
    plan = _checked(recipe)
    with needs_distill("pocketlens distill reinforce"):
        from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data
        from pocketlens.distill.reinforced import read_reinforced
        from pocketlens.distill.shards import bytes_by_name

    space = Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        shards = reinforce_data(plan, space, report)
        cost, samples = bytes_by_name(shards), len(read_reinforced(shards))
    for shard in shards:
        out_json({"shard": shard}) if as_json else out(str(shard))
    if as_json:
        out_json({"samples": samples, "bytes_per_sample": {name: size / samples for name, size in cost.items()}})
    else:
        parts = ", ".join(f"{name} {size / samples:,.0f}" for name, size in cost.items())
        say(f"{samples:,} samples of {sum(cost.values()) / samples:,.0f} bytes: {parts}")
    return 0


@app.command("train")
def train(recipe: RecipePath, work: WorkPath, as_json: AsJson = False) -> int:
    """Train the student; data and shards are made first where they are missing."""
    plan = _checked(recipe)
    with needs_distill("pocketlens distill"):
        from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data, train_student

    space = Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        train_student(plan, space, reinforce_data(plan, space, report), report)
    out_json({"student": space.student}) if as_json else out(str(space.student))
    return 0


@app.command("evaluate")
def evaluate(
    recipe: RecipePath,
    work: WorkPath,
    bundle: Annotated[Path | None, typer.Option(help="Judge this bundle's ONNX graphs as well.")] = None,
    as_json: AsJson = False,
) -> int:
    """Judge teachers, student and, with --bundle, its ONNX graphs on the test split; 95 % intervals in brackets."""
    plan = _checked(recipe)
    with needs_distill("pocketlens distill evaluate"):
        from pocketlens.distill.data.sample import read_samples
        from pocketlens.distill.evaluation import JudgedStudent, JudgedTeachers, evaluate
        from pocketlens.distill.pipeline import Workspace, open_teachers
        from pocketlens.distill.students.student import load_student

    space = Workspace(work)
    samples, teachers = read_samples(space.data, "test")[:], open_teachers(plan)
    judged: list[Judged] = [JudgedTeachers(teachers.embedder, teachers.captioner)]
    judged.append(JudgedStudent(*load_student(space.student)))
    judged += [] if bundle is None else _judged_graphs(bundle)
    with progress() as report:
        results = [
            evaluate(one, samples, space.data, seed=plan.seed, progress=partial(report, one.name)) for one in judged
        ]
    for result in results:
        if as_json:
            out_json(result)
            continue
        for name, figure in result.figures.items():
            interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
            out(f"{result.subject}\t{name}\t{figure.value:.4f}\t{interval}\tn={figure.samples}")
    return 0


@app.command("sketch")
def sketch(
    recipe: RecipePath,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each graph.")] = 50,
    as_json: AsJson = False,
) -> int:
    """Show what the recipe's student costs before it is trained: weights, MACs, size, latency measured here."""
    plan = _checked(recipe)
    with needs_distill("pocketlens distill sketch"):
        from pocketlens.export.sketch import sketch

    found = sketch(plan.preset(), runs=runs)
    if as_json:
        out_json(found)
        return 0
    out("graph\tparameters\tMACs\tMB fp32\tMB fp16\tMB int8\tMB int4\tp50 ms")
    for one in found.graphs:
        sizes = "\t".join(f"{size / 1e6:.2f}" for size in one.bytes.values())
        out(f"{one.role}\t{one.parameters:,}\t{one.macs:,}\t{sizes}\t{one.latency.p50_ms:.2f}")
    sizes = "\t".join(f"{size / 1e6:.2f}" for size in found.bytes.values())
    out(f"student\t{found.parameters:,}\t\t{sizes}\t{found.caption_ms:.1f} for a caption")
    return 0


def _checked(path: Path) -> "Recipe":
    """Return the recipe at `path` if its preset exists and its teachers are folders."""
    with needs_distill("pocketlens distill"):
        from pocketlens.distill.recipe import read_recipe
        from pocketlens.distill.teachers.opening import captioner_card, embedder_card
    plan = read_recipe(path)
    plan.preset()
    embedder_card(plan.teachers.embedder)
    captioner_card(plan.teachers.captioner)
    return plan


def _judged_graphs(path: Path) -> "list[Judged]":
    from pocketlens.core.bundle import load_bundle
    from pocketlens.distill.evaluation import JudgedLens
    from pocketlens.runtime import load

    encoders = (graph for graph in load_bundle(path).manifest.graphs if graph.role == "image_encoder")
    return [
        JudgedLens(load(path, precision=graph.precision), name=f"{graph.target}-{graph.precision}")
        for graph in encoders
        if graph.engine == "onnxruntime"
    ]
