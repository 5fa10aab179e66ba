"""A student with a planted layer that 8 bits ruin: the export keeps it in float, or names it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import ParityGateFailed
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.student import Student, load_student, save_student
from pocketlens.export.building import Build
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.outcomes import GraphOutcome
from pocketlens.export.recipe import ExportRecipe, Gates
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.sensitivity.transplant import measure_transplants
from pocketlens.export.targets import open_target
from tests.export.conftest import ROLES

_LOUD = 3000.0
# In the stem: the branches of this random residual network end in batch norms of weight 0.
_PLANTED = ("backbone.conv1.3", "backbone.conv1.6")
_NORM = "backbone.conv1.4"
OPEN = Gates(int8_min_mean_cosine=0.99, min_speedup=1e6, accept_slower=ROLES)


@pytest.fixture(scope="module")
def planted_folder(
    student: tuple[Student, Tokenizer], student_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny student with one loud channel between two convolutions, which the second takes back."""
    folder = tmp_path_factory.mktemp("planted") / "student"
    model, _ = load_student(student_folder)
    modules = dict(model.named_modules())
    first, second = (next(m for name, m in modules.items() if name.endswith(end)) for end in _PLANTED)
    norm = next(m for name, m in modules.items() if name.endswith(_NORM))
    assert isinstance(first, torch.nn.Conv2d)
    assert isinstance(second, torch.nn.Conv2d)
    with torch.no_grad():
        norm.weight[0] *= _LOUD  # type: ignore[operator, index]
        norm.bias[0] *= _LOUD  # type: ignore[operator, index]
        second.weight[:, 0] /= _LOUD
    save_student(folder, model)
    (folder / "tokenizer.json").write_bytes((student_folder / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def pictures(feeds: dict[str, list[Feed]]) -> dict[Role, list[Feed]]:
    return {"image_encoder": feeds["image_encoder"]}


def build(
    folder: Path, out: Path, recipe: ExportRecipe, bundle: Bundle, feeds: dict[Role, list[Feed]], reference: Reference,
    *, keep_going: bool,
) -> tuple[list[GraphRecord], list[GraphOutcome]]:  # fmt: skip
    told: list[GraphOutcome] = []
    graphs = student_graphs(load_student(folder)[0])
    made = Build(recipe, out, roles=tuple(feeds), keep_going=keep_going, watch=told.append, reports=out / "reports")
    records = made.graphs(
        str(folder), graphs, manifest=bundle.manifest, feeds=feeds, reference=reference,
        progress=lambda what, done, total: None,
    )  # fmt: skip
    return records, told


def test_a_ruined_layer_stays_in_float_and_the_record_says_so(
    planted_folder: Path, bundle: Bundle, pictures: dict[Role, list[Feed]], reference: Reference, tmp_path: Path
) -> None:
    recipe = ExportRecipe(variants=("onnx-fp32", "onnx-int8"), latency_runs=3, gates=OPEN)
    records, told = build(planted_folder, tmp_path, recipe, bundle, pictures, reference, keep_going=False)
    fp32, int8 = records
    assert int8.precision == "int8"
    assert int8.parity is not None
    assert int8.parity.mean >= 0.99
    assert int8.speedup_vs_fp32 is not None
    (note,) = (note for note in int8.notes if note.startswith("Mixed precision"))
    assert any(name in note for name in _PLANTED)
    first = next(o for o in told if o.variant == "onnx-int8" and o.parity is not None)
    assert first.parity is not None
    assert first.parity.mean < 0.9  # what plain int8 makes of it
    assert int8.bytes < 0.9 * fp32.bytes
    kinds = {t.data_type for t in onnx.load(tmp_path / "bundle" / int8.path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    reports = tmp_path / "reports"
    assert sorted(path.name for path in reports.iterdir()) == [f"image_encoder.{end}" for end in ("json", "md", "png")]
    assert "| **chosen** |" in (reports / "image_encoder.md").read_text()
    assert not (tmp_path / "bundle" / "reports").exists()


def test_without_mixed_precision_the_error_names_the_ruined_layer(
    planted_folder: Path, bundle: Bundle, pictures: dict[Role, list[Feed]], reference: Reference, tmp_path: Path
) -> None:
    recipe = ExportRecipe(variants=("onnx-int8",), latency_runs=3, gates=OPEN, mixed_precision="off")
    with pytest.raises(ParityGateFailed, match="dB when it alone is quantized") as caught:
        build(planted_folder, tmp_path, recipe, bundle, pictures, reference, keep_going=False)
    assert any(f"the worst layer is {name} (Conv)" in caught.value.found for name in _PLANTED)
    assert not (tmp_path / "reports").exists()


def test_a_share_of_float_layers_that_is_not_allowed_fails_with_both_reasons(
    planted_folder: Path, bundle: Bundle, pictures: dict[Role, list[Feed]], reference: Reference, tmp_path: Path
) -> None:
    recipe = ExportRecipe(variants=("onnx-fp32", "onnx-int8"), latency_runs=3, gates=OPEN, max_float_share=0.0)
    records, told = build(planted_folder, tmp_path, recipe, bundle, pictures, reference, keep_going=True)
    assert [record.precision for record in records] == ["fp32"]
    reason = [o for o in told if o.variant == "onnx-int8"][-1].reason
    assert any(f"the worst layer is {name} (Conv)" in reason for name in _PLANTED)
    assert "max_float_share" in reason
    assert (tmp_path / "reports" / "image_encoder.md").exists()  # what could be had, and was refused


@pytest.mark.parametrize("precision", ["int4", "int8_dynamic"])
def test_the_worst_layer_of_a_graph_without_calibration_is_found_by_transplanting(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], precision: str, tmp_path: Path
) -> None:
    paths = {"fp32": tmp_path / "fp32.onnx", precision: tmp_path / "small.onnx"}
    open_target("onnx").export(graphs["text_encoder"], paths, [])
    model = onnx.load(paths["fp32"])
    found = measure_transplants(model, onnx.load(paths[precision]), feeds["text_encoder"][:4])
    kinds = {one.layer.operator for one in found}
    assert {"MatMul", "Gemm"} & kinds
    assert ("Gather" in kinds) == (precision == "int8_dynamic")  # tables stay in float in 4 bits
    assert all(5 < one.alone_db < 90 for one in found)
    assert np.ptp([one.alone_db for one in found]) > 1


@pytest.mark.slow
def test_the_choice_is_carried_over_to_executorch(
    planted_folder: Path, bundle: Bundle, pictures: dict[Role, list[Feed]], reference: Reference, tmp_path: Path
) -> None:
    recipe = ExportRecipe(variants=("executorch-fp32", "executorch-int8"), latency_runs=3, gates=OPEN)
    records, told = build(planted_folder, tmp_path, recipe, bundle, pictures, reference, keep_going=True)
    int8 = next(record for record in records if record.precision == "int8")
    assert int8.parity is not None
    first = next(o for o in told if o.variant == "executorch-int8" and o.parity is not None)
    assert first.parity is not None
    assert first.parity.mean < 0.97 < int8.parity.mean
    assert any(note.startswith("Mixed precision") and "of its ONNX form" in note for note in int8.notes)
