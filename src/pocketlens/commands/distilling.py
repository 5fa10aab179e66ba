"""Teachers and pictures to a student: the whole way, or one step at a time."""

from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress

__all__ = ["app"]

RecipePath = Annotated[Path, typer.Argument(help="A recipe (TOML); `recipes/` holds examples.", show_default=False)]
WorkPath = Annotated[Path, typer.Option("--work", "-w", help="Folder of data, shards and the run.", show_default=False)]


class _RunByDefault(TyperGroup):
    """`distill RECIPE` means `distill run RECIPE`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        known = bool(args) and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else ["run", *args])


app = typer.Typer(cls=_RunByDefault, help="Distil: `pocketlens distill RECIPE --work DIR`.", no_args_is_help=True)


@app.command("run")
def run(recipe: RecipePath, work: WorkPath, as_json: AsJson = False) -> int:
    """Do all steps: data, reinforce, train, evaluate. What is finished is kept; a killed run goes on."""
    from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data, train_student
    from pocketlens.distill.recipe import read_recipe

    plan, space = read_recipe(recipe), Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        train_student(plan, space, reinforce_data(plan, space, report), report)
    return evaluate(recipe, work, as_json=as_json)


@app.command("reinforce")
def reinforce(recipe: RecipePath, work: WorkPath) -> int:
    """Make the data set and ask the teachers about every picture, once."""
    from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data
    from pocketlens.distill.recipe import read_recipe

    plan, space = read_recipe(recipe), Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        shards = reinforce_data(plan, space, report)
    for shard in shards:
        out(str(shard))
    return 0


@app.command("train")
def train(recipe: RecipePath, work: WorkPath) -> int:
    """Train the student; data and shards are made first where they are missing."""
    from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data, train_student
    from pocketlens.distill.recipe import read_recipe

    plan, space = read_recipe(recipe), Workspace(work)
    with progress() as report:
        prepare_data(plan, space, report)
        train_student(plan, space, reinforce_data(plan, space, report), report)
    out(str(space.student))
    return 0


@app.command("evaluate")
def evaluate(
    recipe: RecipePath,
    work: WorkPath,
    bundle: Annotated[Path | None, typer.Option(help="Judge this bundle as well.")] = None,
    as_json: AsJson = False,
) -> int:
    """Judge teachers, student and, with --bundle, a bundle on the test split; 95 % intervals in brackets."""
    from pocketlens.distill.evaluation import JudgedLens, JudgedStudent, JudgedTeachers, evaluate
    from pocketlens.distill.pipeline import Workspace, open_teachers
    from pocketlens.distill.recipe import read_recipe
    from pocketlens.distill.scenes import read_split
    from pocketlens.distill.students.student import load_student
    from pocketlens.runtime import load

    plan, space = read_recipe(recipe), Workspace(work)
    samples, teachers = read_split(space.data, "test"), open_teachers(plan)
    judged = [JudgedTeachers(teachers.embedder, teachers.captioner), JudgedStudent(*load_student(space.student))]
    if bundle is not None:
        judged.append(JudgedLens(load(bundle)))
    with progress() as report:
        results = []
        for number, one in enumerate(judged, start=1):
            results.append(evaluate(one, samples, space.data, seed=plan.seed))
            report("evaluate", number, len(judged), one.name)
    for result in results:
        if as_json:
            out_json(result)
            continue
        for name, figure in result.figures.items():
            out(f"{result.subject}\t{name}\t{figure.value:.4f}\t[{figure.low:.4f}, {figure.high:.4f}]\tn={figure.samples}")
    return 0
