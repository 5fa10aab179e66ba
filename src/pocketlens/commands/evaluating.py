"""Teachers, students and bundles judged by one harness; blind rating sheets and what raters made of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens.commands.distilling import needs_distill
from pocketlens.commands.options import AsJson
from pocketlens.console import out, out_json, progress, say
from pocketlens.core.errors import DataError

if TYPE_CHECKING:
    from pocketlens.distill.evaluation.metrics import Figure
    from pocketlens.distill.evaluation.scorecard import Scorecard
    from pocketlens.distill.evaluation.subjects import Opened

__all__ = ["app", "evaluate", "read", "sheet"]

Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="SUBJECT", help="A teacher, a student's folder, BUNDLE or BUNDLE#VARIANT.", show_default=False
    ),
]
Data = Annotated[Path, typer.Option("--data", help="A data set's folder, or a WORK folder.", show_default=False)]
Split = Annotated[str, typer.Option("--split", help="The split that is judged.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Only the first pictures; 0 for all.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of probes, corruptions and intervals.")]

app = typer.Typer(help="Blind ratings by people: a sheet for them, and what they said.", no_args_is_help=True)


def evaluate(
    subjects: Subjects,
    data: Data,
    split: Split = "test",
    limit: Limit = 0,
    judge: Annotated[str, typer.Option("--judge", help="The model that gives CLIPScore; none by default.")] = "",
    objects: Annotated[
        str, typer.Option("--objects", help="Object table: `scenes`, `photo` or a file.", show_default="by the data")
    ] = "auto",
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Zero-shot classes and templates (TOML).")
    ] = None,
    probes: Annotated[int, typer.Option("--probes", min=0, help="Pictures with yes/no probes; 0 for none.")] = 500,
    robustness: Annotated[
        str, typer.Option("--robustness", metavar="KINDS", help="blur,noise,jpeg,dark,rotated by commas, or `all`.")
    ] = "",
    severities: Annotated[str, typer.Option("--severities", help="Of each kind, by commas.")] = "1,2,3",
    seed: Seed = 0,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.html", help="Write a page with pictures.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Keep answers and figures; resume from them.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Judge teachers, students and bundles on one split, with 95 % intervals and paired differences."""
    with needs_distill("pocketlens evaluate", DataError):
        from pocketlens.distill.evaluation.corruptions import CORRUPTIONS
        from pocketlens.distill.evaluation.questions import prepare_judge, prepare_questions
        from pocketlens.distill.evaluation.report import write_report
        from pocketlens.distill.evaluation.session import evaluate_subjects, read_split
        from pocketlens.distill.evaluation.subjects import subjects_of

    samples, folder = read_split(data, split, limit=limit)
    everybody = [subject for argument in subjects for subject in subjects_of(argument)]
    opened = _opened(judge)
    questions = prepare_questions(
        samples,
        seed=seed,
        objects=objects,
        classes=classes,
        probed_pictures=probes,
        robustness=tuple(CORRUPTIONS) if robustness == "all" else tuple(filter(None, robustness.split(","))),
        severities=_numbers(severities),
        judge=opened.identity if opened else (),
    )
    judging = prepare_judge(opened, samples, folder) if opened else None
    cards: list[Scorecard] = []
    try:
        with progress() as report:
            outcome = evaluate_subjects(
                everybody,
                samples,
                folder,
                questions,
                judge=judging,
                out=out_folder,
                progress=report,
                judged=cards.append,
            )
    finally:  # a subject that fails takes nothing from those before it
        for card in cards:
            _show(card, card.subject, card.figures, as_json=as_json)
            for note in card.notes if not as_json else ():
                say(f"{card.subject}: {note}")
    if page is not None:
        write_report(page, outcome.cards, outcome.answers, outcome.differences, samples, folder, questions)
    for name, figures in outcome.differences.items():
        _show({"difference": name, "figures": figures}, name, figures, as_json=as_json)
    return 0


@app.command("sheet")
def sheet(
    evaluation: Annotated[
        Path,
        typer.Argument(metavar="EVALUATION", help="The --out folder of `pocketlens evaluate`.", show_default=False),
    ],
    systems: Annotated[
        list[str], typer.Option("--system", help="Subject whose captions are compared; twice.", show_default=False)
    ],
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where it goes.", show_default=False)],
    split: Split = "test",
    limit: Limit = 0,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="The most pictures on the sheet.")] = 100,
    as_json: AsJson = False,
) -> int:
    """Write a blind rating sheet of two subjects' captions, and its key."""
    if len(systems) != 2 or systems[0] == systems[1]:
        raise typer.BadParameter("name two different subjects: --system A --system B")
    with needs_distill("pocketlens ratings sheet", DataError):
        from pocketlens.distill.evaluation.answers import load_answers
        from pocketlens.distill.evaluation.rating_sheet import write_sheet
        from pocketlens.distill.evaluation.session import file_name, read_split

    samples, folder = read_split(data, split, limit=limit)
    found = [load_answers(evaluation / "answers" / f"{file_name(name)}.json") for name in systems]
    captions = [() if one is None else one.clean.captions for one in found]
    if any(len(own) != len(samples) for own in captions) or len({one.key for one in found if one}) != 1:
        raise DataError(
            str(evaluation),
            expected=f"captions of {systems[0]} and {systems[1]} for the same {len(samples)} pictures",
            found=f"{len(captions[0])} and {len(captions[1])} captions",
            remedy="Evaluate both in one call with this --out, on the same data, --split and --limit.",
        )
    pictures, ids = [sample.picture(folder) for sample in samples], [sample.id for sample in samples]
    key = write_sheet(out_folder, pictures, ids, (captions[0], captions[1]), (systems[0], systems[1]), pairs=pairs)
    out_json({"sheet": out_folder / "sheet.html", "pairs": len(key.pairs)}) if as_json else out(
        str(out_folder / "sheet.html")
    )
    say(f"Give sheet.html to the raters and keep {out_folder / 'key.json'} to yourself.")
    return 0


@app.command("read")
def read(
    ratings: Annotated[list[Path], typer.Argument(metavar="RATINGS", help="What raters exported.", show_default=False)],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The sheet's key.json.", show_default=False)],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Print agreement, win rate and mean ratings from several raters' files."""
    with needs_distill("pocketlens ratings read", DataError):
        from pocketlens.distill.evaluation.rating_sheet import read_key
        from pocketlens.distill.evaluation.ratings import rating_report, read_ratings

    sealed = read_key(key)
    result = rating_report([read_ratings(path, sealed) for path in ratings], sealed, seed=seed)
    if as_json:
        out_json(result)
        return 0
    a, b = result.systems
    out(f"A\t{a}\nB\t{b}\nraters\t{result.raters}\npairs\t{result.pairs}")
    _show(None, "A over B", {"win_rate": result.win_rate, **result.figures}, as_json=False)
    for name, alpha in {"preference": result.preference_alpha, **result.alpha}.items():
        out(f"agreement\t{name}\talpha {alpha:.4f}")
    return 0


def _show(value: object, name: str, figures: "dict[str, Figure]", *, as_json: bool) -> None:
    if as_json:
        out_json(value)
        return
    for what, figure in figures.items():
        out(f"{name}\t{what}\t{figure.value:.4f}\t[{figure.low:.4f}, {figure.high:.4f}]\tn={figure.samples}")


def _opened(judge: str) -> "Opened | None":
    if not judge:
        return None
    from pocketlens.distill.evaluation.subjects import subjects_of

    candidates = subjects_of(judge)
    if len(candidates) > 1:
        raise DataError(
            f"judge {judge}",
            expected="one model",
            found=f"{len(candidates)}: {', '.join(one.name for one in candidates)}",
            remedy="Name a variant: BUNDLE#onnx-fp32.",
        )
    return candidates[0].open()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise typer.BadParameter(f"--severities: expected numbers by commas, found {text!r}") from error
