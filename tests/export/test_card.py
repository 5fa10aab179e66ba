from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import GraphRecord, Latency, Manifest, Parity, Quality, TeacherRecord
from pocketlens.export.card import model_card
from pocketlens.export.known_failures import known_failures
from pocketlens.export.recipe import ExportRecipe, Gates
from tests.core.small_bundle import small_manifest, stage

SECTIONS = [
    "Intended use",
    "Out of scope",
    "Known failures",
    "Teachers and licences",
    "Data",
    "Quality",
    "Sizes and latencies",
    "Parity",
    "Tool versions",
    "Provenance",
]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small_manifest(stage(tmp_path / "staged"))


def _quality(subject: str, metric: str, value: float, low: float | None = None, high: float | None = None) -> Quality:
    return Quality(subject=subject, metric=metric, value=value, low=low, high=high, samples=100)


def _graph(manifest: Manifest, **changes: object) -> Manifest:
    graph: GraphRecord = msgspec.structs.replace(manifest.graphs[0], **changes)
    return msgspec.structs.replace(manifest, graphs=(graph,))


def _failures(manifest: Manifest, *quality: Quality, **provenance: str) -> str:
    return "\n".join(known_failures(msgspec.structs.replace(manifest, quality=quality, provenance=provenance)))


def test_every_section_is_there_even_when_nothing_was_recorded(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == SECTIONS
    for words in ("Not evaluated.", "None recorded.", "how good its answers are is not known"):
        assert words in card
    assert "Warning" not in card


def test_a_licence_conflict_stands_at_the_top_of_the_card(manifest: Manifest) -> None:
    teacher = TeacherRecord(id="big", licence="apple-amlr", task="embedding")
    card = model_card(msgspec.structs.replace(manifest, teachers=(teacher,)))
    assert card.index("> **Warning: licence conflict.**") < card.index("## ")
    assert "> - teacher big (apple-amlr): " in card
    assert "Not for commercial use" in card
    assert "| big | embedding | apple-amlr | research or non-commercial use only |" in card


def test_commercial_use_is_not_called_free_without_saying_what_was_not_recorded(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert "No teacher is recorded. The licence of the training data is not recorded." in card
    known = msgspec.structs.replace(
        manifest,
        teachers=(TeacherRecord(id="t", licence="MIT", task="embedding"),),
        provenance={"data": "pictures", "data_licence": "CC0-1.0"},
    )
    assert "not recorded" not in model_card(known).partition("## Teachers and licences")[2].partition("## Quality")[0]


def test_quality_has_a_column_for_each_subject_and_intervals_in_the_cells(manifest: Manifest) -> None:
    quality = (_quality("teacher", "r1_i2t", 0.9, 0.8, 0.95), _quality("student", "r1_i2t", 0.5, 0.4, 0.6))
    card = model_card(msgspec.structs.replace(manifest, quality=(*quality, _quality("student", "cider", 70.0))))
    assert "| metric | samples | teacher | student |" in card
    assert "| r1_i2t | 100 | 0.9000 [0.8000, 0.9500] | 0.5000 [0.4000, 0.6000] |" in card
    assert "| cider | 100 | – | 70.0000 |" in card


def test_sizes_latencies_parity_tools_and_notes_come_from_the_graphs(manifest: Manifest) -> None:
    latency = Latency(p50_ms=1.234, p90_ms=2.5, runs=10, threads=1, machine="aarch64, 4 cores")
    parity = Parity(metric="cosine", minimum=0.991, p1=0.992, mean=0.999, samples=50)
    card = model_card(
        _graph(
            manifest,
            bytes=1_500_000,
            latency=latency,
            parity=parity,
            notes=("Mind this.",),
            tools={"onnx": "1.0"},
        )
    )
    assert "| onnx-fp32 | 1.50 | 1.23 |" in card
    assert "on aarch64, 4 cores, threads: 1" in card
    assert "| cosine | 0.991000 / 0.992000 / 0.999000 | 50 | 1.23 | 2.50 | – |" in card
    assert "- Mind this. (onnx-fp32 image_encoder)" in card
    assert "| onnx | 1.0 | onnx |" in card


def test_parity_of_coreml_is_said_to_come_from_the_package_read_back(manifest: Manifest) -> None:
    parity = Parity(metric="cosine", minimum=0.999, p1=0.999, mean=0.9999, samples=50)
    assert "read back" in model_card(_graph(manifest, engine="coreml", target="coreml", parity=parity))
    assert "read back" not in model_card(_graph(manifest, engine="coreml", target="coreml"))


def test_a_pipe_in_a_name_does_not_break_the_tables(manifest: Manifest) -> None:
    teacher = TeacherRecord(id="a|b", licence="MIT", task="embedding")
    assert "| a\\|b | embedding | MIT | none |" in model_card(msgspec.structs.replace(manifest, teachers=(teacher,)))


def test_hallucination_is_named_with_its_interval_and_the_teachers_beside_it(manifest: Manifest) -> None:
    found = _failures(
        manifest, _quality("student", "hallucination", 0.25, 0.2, 0.3), _quality("teacher", "hallucination", 0.1)
    )
    assert "25.0% [20.0%, 30.0%] of the objects that captions name are not in the picture" in found
    assert "the teacher: 10.0%" in found
    assert "not in the picture" not in _failures(manifest, _quality("student", "hallucination", 0.0))


def test_figures_at_chance_are_called_guessing_and_those_above_are_not(manifest: Manifest) -> None:
    at_chance = _quality("student", "zero_shot", 0.11, 0.05, 0.18)
    assert "into 14 classes is not better than guessing" in _failures(manifest, at_chance, zero_shot_classes="14")
    assert "guessing" not in _failures(
        manifest, _quality("student", "zero_shot", 0.5, 0.4, 0.6), zero_shot_classes="14"
    )
    assert "number of classes was not recorded" in _failures(manifest, at_chance)
    assert "Retrieval (r10_i2t) is not better" in _failures(manifest, _quality("student", "r10_i2t", 0.12, 0.1, 0.2))
    assert "Retrieval" not in _failures(manifest, _quality("student", "r10_i2t", 0.5, 0.4, 0.6))


def test_a_loss_counts_where_the_intervals_are_apart(manifest: Manifest) -> None:
    teacher = _quality("teacher", "cider", 90.0, 85.0, 95.0)
    assert "cider 70 against 90" in _failures(manifest, teacher, _quality("student", "cider", 70.0, 65.0, 75.0))
    assert "against" not in _failures(manifest, teacher, _quality("student", "cider", 84.0, 80.0, 88.0))
    # More hallucination is worse, less is not.
    few, many = _quality("teacher", "missed", 0.1, 0.05, 0.15), _quality("student", "missed", 0.4, 0.3, 0.5)
    assert "missed 0.4 against 0.1" in _failures(manifest, few, many)
    swapped = (_quality("student", "missed", 0.1, 0.05, 0.15), _quality("teacher", "missed", 0.4, 0.3, 0.5))
    assert "against" not in _failures(manifest, *swapped)


def test_a_variant_that_loses_against_the_student_is_named(manifest: Manifest) -> None:
    student = _quality("student", "r1_i2t", 0.6, 0.55, 0.65)
    found = _failures(manifest, student, _quality("onnx-fp32", "r1_i2t", 0.3, 0.25, 0.35))
    assert "onnx-fp32 is worse than the student" in found


def test_slow_unrun_and_disagreeing_graphs_are_named(manifest: Manifest) -> None:
    assert "onnx-fp32: 1 graphs were never run" in _failures(manifest)
    slow = _graph(manifest, precision="int8", speedup_vs_fp32=0.5)
    assert "onnx-int8 image_encoder is slower than its fp32 twin: 0.50 times" in _failures(slow)
    agreement = Parity(metric="token_agreement", minimum=0, p1=0, mean=0.75, samples=40)
    changed = _graph(manifest, precision="int8", role="caption_decode", parity=agreement)
    assert "25.0% of 40 captions differ" in _failures(changed)


def test_what_the_recipe_let_pass_is_named(manifest: Manifest) -> None:
    gates = Gates(accept_slower=("text_encoder",), max_metric_loss={"r1_i2t": 0.03}, int8_min_token_agreement=0.5)
    recorded = msgspec.json.encode(ExportRecipe(gates=gates)).decode()
    found = _failures(manifest, export_recipe=recorded)
    assert "accepted by name that these may be slower than in fp32: text_encoder." in found
    assert "asked for no agreement" not in found
    assert "no limit" not in found
    lax = _failures(manifest, export_recipe=msgspec.json.encode(ExportRecipe()).decode())
    assert "asked for no agreement of quantized captions" in lax
    assert "no limit to what quantization may cost" in lax
    for provenance in ({}, {"export_recipe": "not JSON"}, {"export_recipe": '{"gates": 3}'}):
        assert "which gates the graphs passed is not known" in _failures(manifest, **provenance)
