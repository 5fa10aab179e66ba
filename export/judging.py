"""Task quality of a distilled student's bundle, of itself and of every graph that runs here, and its confidence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pocketlens.core.bundle import Bundle, ConfidenceSpec, Quality, Role
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.data.sample import Sample, as_source
from pocketlens.distill.evaluation import Judged, JudgedLens, JudgedStudent, evaluate
from pocketlens.distill.evaluation.questions import prepare_questions
from pocketlens.distill.evaluation.scorecard import right_captions
from pocketlens.distill.students.student import Student
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.latency import THREADS
from pocketlens.export.pipeline import Evaluation
from pocketlens.export.recipe import Gates
from pocketlens.export.single_graph import single_graphs
from pocketlens.runtime.confidence import feature_table, fit_confidence
from pocketlens.runtime.engines import ENGINES
from pocketlens.runtime.lens import load
from pocketlens.runtime.results import Refusal

__all__ = ["fitted_confidence", "judge_run", "judged_variants"]

_FEWEST_TO_FIT: Final = 50
"""Ten for each of the coefficients or so; of fewer captions nothing is concluded."""


def judged_variants(
    bundle: Bundle, graphs: Mapping[Role, Graph], gates: Gates, *, threads: int = THREADS
) -> Iterator[tuple[Role | None, JudgedLens]]:
    """Yield what of `bundle` can be judged here: each whole variant, and each graph that has a metric limit of its own.

    The first of a pair is the role of a single graph, or `None` for a variant. A variant that lacks a graph, because it
    failed, is left out, and so is one that no installed engine runs.

    Args:
        bundle: the exported graphs.
        graphs: the eager model's, in eval mode; they stand for the others of a graph that is judged alone.
        gates: say which graphs are judged alone.
        threads: of a whole variant's engine.
    """
    variants: dict[tuple[str, str, str], set[Role]] = {}
    for record in bundle.manifest.graphs:
        variants.setdefault((record.target, record.precision, record.engine), set()).add(record.role)
    for (target, precision, engine), roles in variants.items():
        if roles >= graphs.keys() and engine in ENGINES and find_spec(engine) is not None:
            lens = load(bundle.root, engine=engine, precision=precision, threads=threads)
            yield None, JudgedLens(lens, name=f"{target}-{precision}")
    yield from single_graphs(bundle, graphs, gates)


def fitted_confidence(bundle: Bundle, samples: Sequence[Sample], data: Path) -> ConfidenceSpec | None:
    """Return the confidence that fits the captions of `bundle`, by the graphs that are chosen by default.

    Which captions are right: see `pocketlens.distill.evaluation.scorecard.right_captions`.

    Args:
        bundle: captions pictures, or gets `None`.
        samples: of the validation split, not the one that is judged; those without a caption are left out, and fewer
            than 50 others give `None`: the runtime then uses built-in coefficients.
        data: the folder that their paths begin in.

    Raises:
        PictureError: a picture of theirs was refused.
    """
    captioned = [sample for sample in samples if sample.captions]
    if "caption" not in bundle.manifest.tasks or len(captioned) < _FEWEST_TO_FIT:
        return None
    captions = []
    pictures = (as_source(sample.picture(data)) for sample in captioned)
    for result in load(bundle.root, tuned=False).captions(pictures):
        if isinstance(result, Refusal):
            raise result.error
        captions.append(result)
    questions = prepare_questions(captioned, probed_pictures=0)
    right = right_captions([caption.text for caption in captions], questions)
    return fit_confidence(feature_table(captions), right)


def judge_run(
    student: Student,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    data: Path,
    *,
    validation: Sequence[Sample] = (),
    gates: Gates,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> Callable[[Bundle], Evaluation]:
    """Return what `export_student` calls as `evaluate`: figures with 95 % intervals, and confidence.

    Args:
        student: in eval mode.
        tokenizer: the student's.
        samples: none of which it was trained on, each with a caption.
        data: the folder that their paths begin in.
        validation: what the confidence is fitted on; see `fitted_confidence`.
        gates: of the export.
        seed: of the bootstrap draws.
        progress: told (done, in all, who was judged).
    """

    def judge(bundle: Bundle) -> Evaluation:
        judges: list[Judged] = [JudgedStudent(student, tokenizer)]
        judges += [judged for _, judged in judged_variants(bundle, student_graphs(student), gates)]
        quality: list[Quality] = []
        for number, judged in enumerate(judges, start=1):
            quality += evaluate(judged, samples, data, seed=seed).quality()
            progress(number, len(judges), judged.name)
        return Evaluation(quality=tuple(quality), confidence=fitted_confidence(bundle, validation, data))

    return judge
