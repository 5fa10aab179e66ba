"""What is wrong with a port, by stage: tensors that another device made of the golden inputs, judged. No torch.

Two independent steps. *Which stage*: every golden case is there for one stage and needs, besides
it, only stages that earlier cases are there for; the first case that fails names its stage, and
later cases that need that stage are its consequences. *Why*: the known confusions of
`pocketlens.export.confusions` are carried out and compared with what was handed in.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import BundleIncomplete
from pocketlens.core.golden import read_golden
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.answers import Answers, Handed, Tensor, read_answers, tensor_of
from pocketlens.export.confusions import SUSPECTS, Picture, Suspect, vary
from pocketlens.export.golden_pictures import picture_of
from pocketlens.export.golden_steps import case_spec, load_samples, steps_of
from pocketlens.export.golden_vectors import STAGES, Case, Stage, Step, Vectors, array_sha256, read_vectors
from pocketlens.export.model_diagnosis import Certainty, Finding, judge_model

__all__ = ["Certainty", "Diagnosis", "Finding", "Port", "PortInput", "diagnose_port", "diagnose_tensors"]

_VERY_LIKELY: Final = 0.9
_LIKELY: Final = 0.6
_SLOW: Final = "jpeg-large"


class PortInput(msgspec.Struct, frozen=True, kw_only=True):
    """One golden input as a port gets it.

    Attributes:
        case: name, orientation and the rest.
        spec: what to do.
        samples: stored samples, uint8 or uint16 (h, w[, C]), to be turned by `case.orientation`; or `None`.
        path: of an encoded file, where `samples` is `None`.
    """

    case: Case
    spec: PreprocessSpec
    samples: NDArray[Any] | None
    path: Path | None


Port = Callable[[PortInput], NDArray[Any] | None]
"""A port of preprocessing: the tensor (H, W, 3) for an input, or `None` where it does not take such inputs."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome.

    Attributes:
        model_version: of the bundle.
        handed_in: how many cases had an answer.
        passed_cases: how many of those were right.
        findings: what is wrong, in the order in which to put it right.
        untested: stages that no answer reached: nothing is known about them.
        machine_differs: cases in which this machine itself differs from what the bundle records;
            run `pocketlens verify` first.
    """

    model_version: str
    handed_in: int
    passed_cases: int
    findings: tuple[Finding, ...]
    untested: tuple[Stage, ...]
    machine_differs: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was handed in and nothing was wrong with it."""
        return self.handed_in > 0 and not self.findings


def diagnose_port(path: Path, port: Port) -> Diagnosis:
    """Return what is wrong with `port`, a Python callable, measured on the bundle at `path`.

    Raises:
        BundleError: no valid bundle, or one without golden vectors.
    """
    bundle = load_bundle(path)
    vectors = _vectors(bundle.root)
    handed: dict[str, Handed] = {}
    for case in vectors.cases:
        answer = port(_input(bundle.root, case, bundle.manifest.preprocess))
        if answer is not None:
            handed[case.name] = Handed(tensor=np.asarray(answer), steps={})
    return _diagnose(bundle.root, bundle.manifest.model_version, bundle.manifest.preprocess, Answers(cases=handed))


def diagnose_tensors(path: Path, folder: Path, *, precision: str = "fp32") -> Diagnosis:
    """Return what is wrong with the answers in `folder`, measured on the bundle at `path`.

    Args:
        path: the bundle.
        folder: what the device made: see `pocketlens.export.answers`.
        precision: of the device's graphs; decides how close embeddings must be.

    Raises:
        BundleError: no valid bundle, or one without golden vectors.
        DataError: the folder holds nothing that is recognised, or a file cannot be read.
    """
    bundle = load_bundle(path)
    vectors = _vectors(bundle.root)
    answers = read_answers(folder, vectors, bundle.manifest.preprocess)
    return _diagnose(bundle.root, bundle.manifest.model_version, bundle.manifest.preprocess, answers, precision)


def _vectors(root: Path) -> Vectors:
    vectors = read_vectors(root)
    if vectors is None:
        raise BundleIncomplete(
            f"bundle {root}",
            expected="golden/vectors.json",
            found="a bundle from before there were golden vectors",
            remedy="Export it again; `pocketlens verify` without answers of another device still works.",
        )
    return vectors


def _input(root: Path, case: Case, spec: PreprocessSpec) -> PortInput:
    samples = None if case.is_file else load_samples(root, case)
    return PortInput(
        case=case, spec=case_spec(case, spec), samples=samples, path=root / case.input if case.is_file else None
    )


class _Judged(msgspec.Struct, frozen=True):
    """A case with what was handed in and what was expected."""

    case: Case
    spec: PreprocessSpec
    expected: NDArray[np.uint8]
    given: Tensor
    share: float

    @property
    def found(self) -> NDArray[np.uint8] | None:
        return self.given.levels

    @property
    def complaint(self) -> str:
        return self.given.complaint

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self.case.stage, *self.case.needs)

    @property
    def passed(self) -> bool:
        return self.share >= self.case.tolerance.share and not self.complaint


def _diagnose(root: Path, version: str, spec: PreprocessSpec, answers: Answers, precision: str = "fp32") -> Diagnosis:
    vectors = _vectors(root)
    judged, strange, findings = [], [], []
    for case in vectors.cases:
        handed = answers.cases.get(case.name)
        if handed is None:
            continue
        steps = steps_of(root, case, spec)
        if case.tolerance.exact and array_sha256(steps["tensor"]) != case.results["tensor"].sha256:
            strange.append(case.name)
        findings += _step_finding(case, handed, steps)
        given = tensor_of(handed.tensor, case_spec(case, spec))
        share = 0.0 if given.levels is None else case.tolerance.met(given.levels, steps["tensor"])
        judged.append(_Judged(case, case_spec(case, spec), steps["tensor"], given, share))
    findings = [*_complaints(judged), *findings[:1]]
    findings += _blamed(root, judged, skip={finding.stage for finding in findings})
    golden = read_golden(root)
    pictures_wrong = any(not j.passed for j in judged if j.case.name.startswith("picture-"))
    findings += judge_model(root, golden, vectors, answers, precision=precision, tensors_wrong=pictures_wrong)
    reached = {stage for j in judged for stage in j.stages} | answers.model_stages
    return Diagnosis(
        model_version=version,
        handed_in=len(judged) + answers.model_parts,
        passed_cases=sum(j.passed for j in judged),
        findings=tuple(findings),
        untested=tuple(stage for stage in STAGES if stage not in reached),
        machine_differs=tuple(strange),
    )


def _step_finding(case: Case, handed: Handed, steps: Mapping[Step, NDArray[Any]]) -> list[Finding]:
    """Return the first intermediate result that is off, where some were handed in."""
    stage_of: dict[Step, Stage] = {"upright": "orientation", "pixels": case.stage, "wide": "resize", "tall": "resize"}
    for step, expected in steps.items():
        found = handed.steps.get(step)
        if found is None or step == "tensor" or case.tolerance.met(found, expected) >= case.tolerance.share:
            continue
        equal = case.tolerance.met(found, expected)
        return [
            Finding(
                stage=stage_of[step],
                cause=f"the step `{step}` is the first that is off",
                certainty="proven",
                cases=(case.name,),
                expected=f"{expected.shape}, {case.tolerance.share:.0%} within {case.tolerance.levels} levels",
                found=f"{found.shape}, {equal:.2%} of levels",
                remedy="Everything before this step is right: compare this step alone with the spec.",
            )
        ]
    return []


def _complaints(judged: list[_Judged]) -> list[Finding]:
    """Return one finding for each way in which arrays are of another form than (H, W, 3) uint8."""
    found: dict[str, list[_Judged]] = {}
    for entry in judged:
        if entry.complaint:
            found.setdefault(entry.complaint, []).append(entry)
    findings = []
    for complaint, entries in found.items():
        first = entries[0]
        stage: Stage = "layout"
        if "normalised" in complaint:
            stage = "normalise"
        elif "size" in complaint:
            stage = "geometry"
        findings.append(
            Finding(
                stage=stage,
                cause=complaint,
                certainty="proven",
                cases=tuple(entry.case.name for entry in entries),
                expected=f"uint8 {first.expected.shape}, levels 0..255",
                found=first.given.figure,
                remedy="Hand over uint8 (H, W, 3), R, G, B, levels 0..255; cast and normalisation are in the graph.",
            )
        )
    return findings


def _blamed(root: Path, judged: list[_Judged], *, skip: set[Stage]) -> list[Finding]:
    comparable = [entry for entry in judged if entry.found is not None]
    own: dict[Stage, list[bool]] = {}
    for entry in comparable:
        own.setdefault(entry.case.stage, []).append(entry.passed)
    cleared = {stage for stage, passed in own.items() if all(passed)}
    blamed: dict[Stage, Finding] = {}
    causes: dict[Stage, Suspect] = {}
    for entry in comparable:
        if entry.passed or entry.complaint or not skip.isdisjoint(entry.stages):
            continue
        earlier = next((stage for stage in entry.stages if stage in blamed), None)
        if earlier is None:  # a cause may reach a case that its stage should not touch
            earlier = next((stage for stage, cause in causes.items() if _reproduced(root, entry, cause)), None)
        if earlier is not None:
            finding = blamed[earlier]
            blamed[earlier] = msgspec.structs.replace(finding, cases=(*finding.cases, entry.case.name))
            continue
        candidates = [stage for stage in entry.stages if stage not in cleared]
        pure = [e for e in comparable if _is_pure(e, candidates, cleared)]
        finding, cause = _named(root, entry, candidates, pure)
        if cause is not None:
            causes.setdefault(finding.stage, cause)
        known = blamed.get(finding.stage)
        if known is not None:  # the same cause, seen in a case that should not reach its stage
            finding = msgspec.structs.replace(known, cases=(*known.cases, entry.case.name))
        blamed[finding.stage] = finding
    return sorted(blamed.values(), key=lambda finding: STAGES.index(finding.stage))


def _reproduced(root: Path, entry: _Judged, cause: Suspect) -> bool:
    varied = vary(picture_of(root, entry.case, entry.spec), entry.spec, cause.variation)
    if varied is None or entry.found is None:
        return False
    return entry.case.tolerance.met(entry.found, varied) >= entry.case.tolerance.share


def _is_pure(entry: _Judged, candidates: list[Stage], cleared: set[Stage]) -> bool:
    """Whether nothing but `candidates` can be wrong in a case."""
    open_stages = {stage for stage in entry.stages if stage not in cleared}
    return open_stages <= set(candidates) and not set(candidates).isdisjoint(entry.stages)


def _named(root: Path, first: _Judged, candidates: list[Stage], pure: list[_Judged]) -> tuple[Finding, Suspect | None]:
    near = [suspect for suspect in SUSPECTS if suspect.stage in candidates]
    others = [suspect for suspect in SUSPECTS if suspect.stage not in candidates]
    pictures = {e.case.name: picture_of(root, e.case, e.spec) for e in pure if e.case.name != _SLOW or e is first}
    suspect, explained, exact = _best(near, pure, pictures)
    if explained < _VERY_LIKELY:
        other = _best(others, pure, pictures)
        if other[1] >= _VERY_LIKELY and other[1] > explained:
            suspect, explained, exact = other
    stage, certainty, cause, remedy = first.case.stage, _certainty(explained, exact), "", ""
    if certainty == "stage only":
        suspect = None
    if suspect is not None:
        stage, cause, remedy = suspect.stage, suspect.cause, suspect.remedy
    elif len(candidates) > 1:
        cause = f"one of the stages {', '.join(candidates)}: no case that was handed in separates them"
    found = first.expected if first.found is None else first.found
    off = np.abs(found.astype(np.int32) - first.expected.astype(np.int32))
    finding = Finding(
        stage=stage,
        cause=cause or "not one of the known confusions",
        certainty=certainty,
        explained=explained,
        cases=(first.case.name,),
        expected=f"{first.case.tolerance.share:.0%} of the levels of `{first.case.name}` within "
        f"{first.case.tolerance.levels} of the expected ones",
        found=f"{first.share:.2%}; mean difference {off.mean():.2f}, greatest {off.max()}",
        remedy=remedy or f"Compare the stage `{stage}` with docs/preprocessing.md, in `{first.case.name}` alone.",
    )
    return finding, suspect


def _certainty(explained: float, exact: bool) -> Certainty:
    if exact:
        return "proven"
    if explained >= _VERY_LIKELY:
        return "very likely"
    return "likely" if explained >= _LIKELY else "stage only"


def _best(
    suspects: list[Suspect], pure: list[_Judged], pictures: Mapping[str, Picture]
) -> tuple[Suspect | None, float, bool]:
    """Return the suspect that explains most of the difference, the share of it, and whether bit for bit."""
    entries = [entry for entry in pure if entry.case.name in pictures]
    base = sum(_distance(entry.found, entry.expected) for entry in entries)
    best: tuple[Suspect | None, float, bool] = (None, 0.0, False)
    if base == 0.0:
        return best
    for suspect in suspects:
        left = 0.0
        for entry in entries:
            varied = vary(pictures[entry.case.name], entry.spec, suspect.variation)
            left += _distance(entry.found, entry.expected if varied is None else varied)
            if left > base:
                break
        explained = 1.0 - left / base
        if explained > best[1]:
            best = (suspect, explained, left == 0.0)
    return best


def _distance(found: NDArray[np.uint8] | None, other: NDArray[np.uint8]) -> float:
    if found is None or found.shape != other.shape:
        return 255.0
    return float(np.abs(found.astype(np.int32) - other.astype(np.int32)).mean())
