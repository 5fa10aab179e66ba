"""Exports that go on past failures, and what they tell. Lowering is replaced by copying; all else is real."""

import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import Bundle, GraphRecord, Quality
from pocketlens.core.errors import EngineError, ExportError, ParityGateFailed
from pocketlens.export import ExportRecipe, Gates, lowering
from pocketlens.export.building import Build, twins
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import Lowered, lower
from pocketlens.export.outcomes import GraphOutcome
from pocketlens.export.recipe import Limits
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.targets import Target, open_target
from tests.export.conftest import ROLES

ACCEPT = Gates(int8_min_mean_cosine=0.5, min_speedup=1e6, accept_slower=ROLES)


class Copying:
    """Gives the files of a bundle that was exported before; fails, or writes rubbish, for chosen graphs."""

    engine = "onnxruntime"
    suffix = ".onnx"

    def __init__(self, bundle: Bundle, failing: Sequence[str], rubbish: Sequence[str]) -> None:
        self._bundle = bundle
        self._failing = failing
        self._rubbish = rubbish
        self.calls: list[str] = []

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        for precision, path in paths.items():
            name = f"{precision}/{graph.role}"
            self.calls.append(name)
            record = self._bundle.graph(graph.role, target="onnx", precision=precision)
            shutil.copyfile(self._bundle.path(record), path)
            if name in self._failing:
                raise RuntimeError("no such operator")
            if name in self._rubbish:
                path.write_bytes(b"no graph")


Run = Callable[..., tuple[Build, list[GraphOutcome], list[GraphRecord]]]


@pytest.fixture
def run(
    bundle: Bundle,
    student_folder: Path,
    graphs: dict[str, Graph],
    feeds: dict[str, list[Feed]],
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def start(
        failing: Sequence[str] = (), rubbish: Sequence[str] = (), *, gates: Gates = ACCEPT, keep_going: bool = True,
        variants: Sequence[str] = ("onnx-fp32", "onnx-int8"),
    ) -> tuple[Build, list[GraphOutcome], list[GraphRecord]]:  # fmt: skip
        target = Copying(bundle, failing, rubbish)

        def opened(name: str) -> "Target | Copying":
            return target if name == "onnx" else open_target(name)

        monkeypatch.setattr(lowering, "open_target", opened)
        told: list[GraphOutcome] = []
        recipe = msgspec.convert({"variants": list(variants), "latency_runs": 3}, ExportRecipe)
        recipe = msgspec.structs.replace(recipe, gates=gates)
        build = Build(recipe, tmp_path, keep_going=keep_going, watch=told.append)
        records = build.graphs(
            str(student_folder), graphs, manifest=bundle.manifest, feeds=feeds, reference=reference,  # type: ignore[arg-type]
            progress=lambda what, done, total: None,
        )  # fmt: skip
        return build, told, records

    return start


def names(records: Sequence[GraphRecord]) -> list[str]:
    return [f"{r.precision}/{r.role}" for r in records]


def last(told: Sequence[GraphOutcome]) -> dict[str, GraphOutcome]:
    return {f"{o.variant}/{o.role}": o for o in told}


def test_a_sound_export_tells_of_each_graph_from_waiting_to_passed(run: Run) -> None:
    build, told, shipped = run()
    assert len(shipped) == 8
    for role in ROLES:
        states = [o.status for o in told if (o.variant, o.role) == ("onnx-int8", role)]
        assert list(dict.fromkeys(states)) == ["waiting", "lowered", "passed"]
    final = last(told)["onnx-int8/text_encoder"]
    assert final.bytes
    assert final.parity is not None
    assert final.latency is not None
    assert final.speedup_vs_fp32
    assert build.log.outcomes == tuple(last(told).values())
    build.finish()


def test_a_graph_that_cannot_be_lowered_stops_no_other(run: Run, tmp_path: Path) -> None:
    build, told, shipped = run(["int8/text_encoder"])
    assert sorted(names(shipped)) == sorted(
        f"{p}/{r}" for p in ("fp32", "int8") for r in ROLES if (p, r) != ("int8", "text_encoder")
    )
    failed = last(told)["onnx-int8/text_encoder"]
    assert failed.status == "failed"
    assert "RuntimeError: no such operator" in failed.reason
    assert not (tmp_path / "bundle/graphs/onnx-int8/text_encoder.onnx").exists()
    assert (tmp_path / "bundle/graphs/onnx-fp32/text_encoder.onnx").exists()
    decode = last(told)["onnx-int8/caption_decode"]
    assert decode.status == "passed"
    with pytest.raises(ExportError, match=r"all 8 graphs .* 1 that did not: onnx-int8 text_encoder \(ExportError"):
        build.finish()


def test_captions_are_compared_although_the_image_encoder_failed(run: Run) -> None:
    _, told, _ = run(["fp32/image_encoder"])
    decode = last(told)["onnx-fp32/caption_decode"].parity
    assert decode is not None
    assert (decode.metric, decode.mean) == ("token_agreement", 1.0)
    assert last(told)["onnx-int8/image_encoder"].speedup_vs_fp32 is None


def test_a_graph_that_does_not_run_is_left_out(run: Run) -> None:
    build, told, shipped = run(rubbish=["int8/caption_prefill"])
    assert "int8/caption_prefill" not in names(shipped)
    assert len(shipped) == 7
    assert "a graph that ONNX Runtime can load" in last(told)["onnx-int8/caption_prefill"].reason
    assert isinstance(build.log.errors["onnx-int8", "caption_prefill"], EngineError)


def test_a_graph_that_fails_its_gate_is_left_out_with_limit_and_figure(run: Run, tmp_path: Path) -> None:
    gates = msgspec.structs.replace(ACCEPT, limits={"onnx-int8/text_encoder": Limits(mean_cosine=1.1)})
    build, told, shipped = run(gates=gates)
    assert "int8/text_encoder" not in names(shipped)
    outcome = last(told)["onnx-int8/text_encoder"]
    assert outcome.status == "failed"
    assert "at least 1.1 (limits.onnx-int8/text_encoder.mean_cosine)" in outcome.reason
    assert outcome.parity is not None
    assert sorted(p.stem for p in (tmp_path / "bundle/graphs/onnx-int8").iterdir()) == sorted(
        {*ROLES} - {"text_encoder"}
    )
    with pytest.raises(ExportError, match="ParityGateFailed"):
        build.finish()


def test_without_keep_going_the_first_failure_is_raised(run: Run) -> None:
    with pytest.raises(ExportError, match="no such operator"):
        run(["int8/caption_decode"], keep_going=False)
    with pytest.raises(EngineError):
        run(rubbish=["int8/caption_prefill"], keep_going=False)
    with pytest.raises(ParityGateFailed, match="int8_min_mean_cosine"):
        run(gates=msgspec.structs.replace(ACCEPT, int8_min_mean_cosine=1.1), keep_going=False)


def test_an_export_of_which_nothing_is_left_is_an_error(run: Run) -> None:
    with pytest.raises(ExportError, match="found 4 that did not"):
        run([f"int8/{role}" for role in ROLES], variants=("onnx-int8",))


def test_a_variant_that_loses_too_much_of_a_metric_is_left_out_whole(run: Run, tmp_path: Path) -> None:
    gates = msgspec.structs.replace(ACCEPT, max_metric_loss={"r1_i2t": 0.02})
    build, told, records = run(gates=gates)
    assert (tmp_path / "bundle/graphs/onnx-int8").exists()
    assert all(outcome.status == "passed" for outcome in build.log.outcomes)
    figures = {"student": 0.5, "onnx-fp32": 0.4, "onnx-int8": 0.4}
    quality = [Quality(subject=s, metric="r1_i2t", value=v, samples=8) for s, v in figures.items()]
    assert names(build.evaluated(quality, records, tmp_path / "bundle")) == [f"fp32/{role}" for role in ROLES]
    final = last(told)
    assert {o.status for name, o in final.items() if name.startswith("onnx-int8")} == {"failed"}
    assert {o.status for name, o in final.items() if name.startswith("onnx-fp32")} == {"passed"}
    assert not (tmp_path / "bundle/graphs/onnx-int8").exists()
    assert final["onnx-int8/text_encoder"].quality == {"r1_i2t": 0.4}


def test_twins_are_built_only_for_what_runs_here() -> None:
    assert twins(["onnx-int8", "coreml-int8", "tensorrt-int8", "executorch_vulkan-fp16"]) == ["onnx-fp32"]
    assert twins(["onnx-int4", "onnx-fp32", "executorch-8da8w"]) == ["executorch-fp32"]


def test_precisions_share_a_capture_until_one_of_them_fails(
    bundle: Bundle, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Copying(bundle, ["int8/image_encoder"], [])
    monkeypatch.setattr(lowering, "open_target", lambda name: target)
    told: list[Lowered] = []
    lower(
        str(student_folder), {"onnx-fp32": tmp_path, "onnx-int8": tmp_path}, {role: [] for role in ROLES},  # type: ignore[misc]
        workers=0, progress=lambda what, done, total: None, keep_going=True, watch=told.append,
    )  # fmt: skip
    assert target.calls[:4] == ["fp32/image_encoder", "int8/image_encoder"] * 2
    assert len(target.calls) == 4 + 6
    assert [(t.variant, t.role) for t in told if t.error] == [("onnx-int8", "image_encoder")]
    assert len(told) == 8


@pytest.mark.slow
def test_a_killed_worker_costs_no_graph(student_folder: Path, tmp_path: Path) -> None:
    told: list[Lowered] = []

    def kill_the_workers(result: Lowered) -> None:
        told.append(result)
        if len(told) == 1:
            for child in multiprocessing.active_children():
                child.kill()

    lower(
        str(student_folder), {"onnx-fp32": tmp_path}, {role: [] for role in ROLES},  # type: ignore[misc]
        workers=1, progress=lambda what, done, total: None, keep_going=True, watch=kill_the_workers,
    )  # fmt: skip
    assert sorted(t.role for t in told) == sorted(ROLES)
    assert not [t.error for t in told if t.error]
