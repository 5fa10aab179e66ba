"""The demo's figures: flat keys, computed, and goals that can be missed."""

from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import (
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    Parity,
    TensorSpec,
    TokenizerSpec,
)
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.demo.goals import goals
from pocketlens.demo.report_content import ParityFigure
from pocketlens.demo.stopwatch import Stopwatch
from pocketlens.demo.summary import summarise, write_summary
from pocketlens.demo.tables import comparison_rows, variant_rows
from pocketlens.distill.evaluation import Evaluation, Figure

METRICS = ("r1_i2t", "r1_t2i", "cider", "hallucination", "zero_shot", "bleu4")
SPEC = TensorSpec(name="pixels", dtype="uint8", shape=(-1, 8, 8, 3))


def _evaluation(name: str, value: float, ids: tuple[tuple[int, ...], ...] = ((4, 2), (5, 2))) -> Evaluation:
    figures = {metric: Figure(value=value, low=value / 2, high=value, samples=2) for metric in METRICS}
    return Evaluation(subject=name, seed=1, sample_ids=("a", "b"), figures=figures, token_ids=ids)


def _graph(target: str, precision: str, **fields: object) -> GraphRecord:
    engine = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coreml"}[target]
    base = {"role": "image_encoder", "target": target, "precision": precision, "engine": engine, "path": "x"}
    base |= {"sha256": "0" * 64, "bytes": 7, "inputs": (SPEC,), "outputs": (SPEC,)}
    return GraphRecord(**(base | fields))  # type: ignore[arg-type]


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        name="x",
        model_version="x-1",
        tasks=("embed",),
        embedding=EmbeddingSpec(dim=4),
        preprocess=PreprocessSpec(height_px=8, width_px=8),
        tokenizer=TokenizerSpec(vocab_size=9, text_length=8, pad_id=0, bos_id=1, eos_id=2),
        caption=None,
        graphs=(
            _graph("onnx", "fp32"),
            _graph("onnx", "int8", speedup_vs_fp32=1.7),
            _graph(
                "coreml",
                "fp16",
                notes=("Needs a Mac.",),
                parity=Parity(metric="cosine", minimum=0.998, p1=0.998, mean=0.999, samples=8),
            ),
        ),
        licence="Apache-2.0",
        provenance={},
    )


@pytest.fixture
def evaluations() -> dict[str, Evaluation]:
    return {
        "teacher": _evaluation("teacher", 0.8, ids=()),
        "student": _evaluation("student", 0.6),
        "onnx-fp32": _evaluation("onnx-fp32", 0.6),
        "onnx-int8": _evaluation("onnx-int8", 0.5),
        "executorch-fp32": _evaluation("executorch-fp32", 0.6, ids=((4, 2), (6, 2))),
    }


def _summary(
    manifest: Manifest, evaluations: dict[str, Evaluation], mode: str = "demo", *, resumed: bool = False
) -> dict[str, object]:
    return summarise(
        evaluations,
        manifest,
        seed=3,
        mode=mode,
        student_params=2_000_000,
        bundle_bytes_onnx_int8=3_000_000,
        seconds={"train": 200.0, "export": 90.5},
        resumed=resumed,
    )


def test_the_summary_is_flat_and_comes_from_the_run(
    manifest: Manifest, evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    summary = _summary(manifest, evaluations)
    write_summary(tmp_path / "summary.json", summary)
    read = msgspec.json.decode((tmp_path / "summary.json").read_bytes())
    assert read == summary
    wanted = {
        "seed",
        "test_pictures",
        "student_params",
        "bundle_bytes_onnx_int8",
        "int8_speedup_image",
        "seconds_total",
    }
    wanted |= {f"{who}_r1_{way}" for who in ("teacher", "student", "int8") for way in ("i2t", "t2i")}
    wanted |= {f"{who}_{what}" for who in ("teacher", "student") for what in ("cider", "hallucination")} | {
        "int8_cider"
    }
    wanted |= {"caption_token_identity_onnx", "caption_token_identity_executorch"}
    assert wanted <= read.keys()
    assert read["int8_speedup_image"] == 1.7
    assert read["caption_token_identity_onnx"] == 1.0
    assert read["caption_token_identity_executorch"] == 0.5
    assert read["seconds_total"] == 290.5


def test_goals_are_met_and_missed_as_the_figures_say(manifest: Manifest, evaluations: dict[str, Evaluation]) -> None:
    by_name = {goal.name: goal for goal in goals(_summary(manifest, evaluations))}
    assert not by_name["R@1 image → text, student over teacher"].passed  # 75 %
    assert by_name["R@1 image → text, student over teacher"].got == "75.0%"
    assert by_name["Hallucinated objects, student and teacher"].passed
    assert not by_name["R@1 image → text lost by int8"].passed
    assert by_name["int8 image encoder, speed over fp32"].passed
    assert not by_name["Captions identical, ExecuTorch fp32 and eager"].passed
    better = {**evaluations, "student": _evaluation("student", 0.7), "onnx-int8": _evaluation("onnx-int8", 0.695)}
    again = {goal.name: goal for goal in goals(_summary(manifest, better))}
    assert again["R@1 image → text, student over teacher"].passed
    assert again["R@1 image → text lost by int8"].passed


def test_a_quick_run_is_not_judged_by_what_it_learned(manifest: Manifest, evaluations: dict[str, Evaluation]) -> None:
    names = [goal.name for goal in goals(_summary(manifest, evaluations, mode="quick"))]
    assert not any("over teacher" in name for name in names)
    assert any("Bytes" in name for name in names)


def test_tables_show_every_variant_and_say_what_was_not_measured(
    manifest: Manifest, evaluations: dict[str, Evaluation]
) -> None:
    rows = {f"{row.target}-{row.precision}": row for row in variant_rows(manifest, evaluations)}
    assert rows["onnx-int8"].speedup == 1.7
    assert rows["onnx-int8"].r1_i2t == 0.5
    assert rows["coreml-fp16"].r1_i2t is None
    assert rows["onnx-fp32"].unmeasured == "not measured in this run"
    assert rows["coreml-fp16"].unmeasured == "latency needs a Mac; recall and captions were not evaluated"
    assert rows["coreml-fp16"].parity == ParityFigure("cosine", 0.998, 0.999)  # measured without one
    assert rows["coreml-fp16"].notes == ("Needs a Mac.",)
    comparison = {row.metric: row for row in comparison_rows(evaluations)}
    assert comparison["CIDEr"].ratio == pytest.approx(0.75)
    assert not comparison["Hallucinated objects"].higher_is_better


def test_a_stage_that_fails_is_timed_too() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.stage("export"):
        raise KeyError
    with watch.stage("train"):
        pass
    assert list(watch.seconds) == ["export", "train"]
    assert watch.total_s >= 0


def test_a_resumed_run_does_not_claim_its_time(manifest: Manifest, evaluations: dict[str, Evaluation]) -> None:
    whole = {goal.name: goal.passed for goal in goals(_summary(manifest, evaluations))}
    resumed = {goal.name: goal.passed for goal in goals(_summary(manifest, evaluations, resumed=True))}
    assert whole["Time of this run, seconds"]
    assert resumed["Time of this run"] is False
