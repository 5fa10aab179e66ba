"""`onnx-int8_blocks`: dynamic int8, and a decode step in 8-bit blocks."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pocketlens.core.bundle import Role
from pocketlens.export.graphs import Graph
from pocketlens.export.recipe import choose_variants, is_float, needs_calibration
from pocketlens.export.reference import Feed
from pocketlens.export.targets import open_target

PRECISIONS = ("fp32", "int8_dynamic", "int8_blocks")


@pytest.fixture(scope="module")
def files(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("blocks")
    found: dict[tuple[str, str], Path] = {}
    for role in ("text_encoder", "caption_prefill", "caption_decode"):
        paths = {precision: folder / f"{role}-{precision}.onnx" for precision in PRECISIONS}
        open_target("onnx").export(graphs[role], paths, [])
        found |= {(role, precision): path for precision, path in paths.items()}
    return found


def _run(path: Path, feed: Feed) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def test_the_variant_is_quantized_and_needs_no_calibration() -> None:
    assert choose_variants(["onnx"], ["int8_blocks"]) == ("onnx-int8_blocks",)
    assert not is_float("int8_blocks")
    assert not needs_calibration("int8_blocks")


@pytest.mark.parametrize("role", ["text_encoder", "caption_prefill"])
def test_every_other_graph_is_the_one_of_dynamic_int8(role: Role, files: dict[tuple[str, str], Path]) -> None:
    blocks, dynamic = (onnx.load(files[role, precision]) for precision in ("int8_blocks", "int8_dynamic"))
    assert blocks.graph.SerializeToString(deterministic=True) == dynamic.graph.SerializeToString(deterministic=True)


def test_the_decode_step_has_all_its_linear_layers_in_blocks(files: dict[tuple[str, str], Path]) -> None:
    before, after = (onnx.load(files["caption_decode", precision]).graph for precision in ("fp32", "int8_blocks"))
    constants = {tensor.name for tensor in before.initializer}
    linear = [n for n in before.node if n.op_type in {"MatMul", "Gemm"} and n.input[1] in constants]
    packed = [node for node in after.node if node.op_type == "MatMulNBits"]
    assert len(packed) == len(linear) > 0
    assert {a.i for node in packed for a in node.attribute if a.name == "bits"} == {8}
    [last] = (node for node in packed if "logits" in node.output)
    assert last.domain == "com.microsoft"
    kept = {tensor.name for tensor in after.initializer}
    assert not [node for node in after.node if node.op_type in {"MatMul", "Gemm"} and node.input[1] in kept]


def test_the_decode_step_answers_nearly_as_in_float_at_any_batch(
    files: dict[tuple[str, str], Path], feeds: dict[str, list[Feed]]
) -> None:
    several = {
        name: np.concatenate([feed[name] for feed in feeds["caption_decode"]])
        for name in ("token", "position", "cache")
    }
    exact, found = (_run(files["caption_decode", precision], several) for precision in ("fp32", "int8_blocks"))
    norms = np.linalg.norm(exact["logits"], axis=1) * np.linalg.norm(found["logits"], axis=1)
    assert ((exact["logits"] * found["logits"]).sum(1) / norms).min() > 0.999
    assert not np.array_equal(exact["logits"], found["logits"])
    for row, feed in enumerate(feeds["caption_decode"][:2]):
        alone = _run(files["caption_decode", "int8_blocks"], feed)
        np.testing.assert_allclose(alone["logits"][0], found["logits"][row], atol=1e-4)
