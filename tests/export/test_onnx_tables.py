"""Tables in quantized ONNX graphs: rows are gathered in int8, and logits do not read a table that was changed."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnxruntime.quantization.onnx_model import ONNXModel

from pocketlens.core.bundle import Bundle, Role
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.parity import cosines
from pocketlens.export.reference import Feed
from pocketlens.export.sources.opening import open_source
from pocketlens.export.targets import open_target
from pocketlens.export.targets.onnx_float import write_float
from pocketlens.export.targets.onnx_static import static_quantizer
from pocketlens.export.targets.onnx_tables import gather_in_int8
from tests.export.direct_models import write_blip

QUANTIZED = ("int8", "int8_dynamic", "int4")


def _run(model: onnx.ModelProto | Path, feed: Feed) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    # Without this ONNX Runtime makes the change that is tested here by itself.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def _opened_tables(graph: onnx.GraphProto) -> list[str]:
    """Return the constants that a `Gather` reads through a `DequantizeLinear`: converted as a whole in each call."""
    constants = {tensor.name for tensor in graph.initializer}
    opened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    gathered = [opened.get(node.input[0], "") for node in graph.node if node.op_type == "Gather"]
    return [name for name in gathered if name in constants]


@pytest.mark.parametrize(("role", "tables"), [("text_encoder", 1), ("caption_decode", 2)])
def test_rows_that_are_gathered_in_int8_are_the_same_numbers(
    role: Role, tables: int, graphs: dict[str, Graph], feeds: dict[str, list[Feed]], tmp_path: Path
) -> None:
    source = tmp_path / "float.onnx"
    write_float(graphs[role], source)
    made = ONNXModel(static_quantizer(role, source, feeds[role][:4]).quantized())
    made.topological_sort()  # the quantizer appends its nodes at the end
    model = made.model
    assert len(_opened_tables(model.graph)) == tables
    before = [_run(model, feed) for feed in feeds[role][:4]]
    nodes = len(model.graph.node)
    gather_in_int8(model)
    onnx.checker.check_model(model)
    assert _opened_tables(model.graph) == []
    assert len(model.graph.node) == nodes - 2 * tables  # the table's dequantizer, and the quantizer of the rows
    for feed, expected in zip(feeds[role][:4], before, strict=True):
        for name, value in _run(model, feed).items():
            np.testing.assert_array_equal(value, expected[name])


def test_exported_text_encoders_and_decode_steps_convert_no_table(bundle: Bundle) -> None:
    for role in ("text_encoder", "caption_decode"):
        graph = onnx.load(bundle.path(bundle.graph(role, target="onnx", precision="int8"))).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        assert _opened_tables(graph) == []
        read = [types[node.input[0]] for node in graph.node if node.op_type == "Gather" and node.input[0] in types]
        assert read
        assert set(read) <= {TensorProto.INT8, TensorProto.UINT8}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The decode step of a tiny BLIP, whose logits come from its table of tokens."""
    folder = write_blip(tmp_path_factory.mktemp("blip") / "model")
    return student_graphs(open_source(f"hf:{folder}").model)["caption_decode"]


@pytest.fixture(scope="module")
def blip_feeds(blip: Graph) -> list[Feed]:
    rng = np.random.default_rng(0)
    token, position, cache = blip.inputs
    start = cache.shape[-2] - blip.module.get_buffer("order").numel()  # where texts begin
    return [
        {
            token.name: np.array([5 + step], np.int32),
            position.name: np.array([start + step], np.int32),
            cache.name: rng.normal(size=(1, *cache.shape[1:])).astype(np.float32),
        }
        for step in range(8)
    ]


@pytest.fixture(scope="module")
def blip_files(blip: Graph, blip_feeds: list[Feed], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", *QUANTIZED)}
    open_target("onnx").export(blip, paths, blip_feeds)
    return paths


def test_a_blip_takes_its_logits_from_its_table_of_tokens(blip_files: dict[str, Path]) -> None:
    graph = onnx.load(blip_files["fp32"]).graph
    constants = {tensor.name for tensor in graph.initializer}
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type == "Gemm"
    assert len(gathered & constants & set(last.input)) == 1  # otherwise the tests below show nothing


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.99), ("int8_dynamic", 0.99), ("int4", 0.95)])
def test_a_decode_step_whose_logits_share_the_table_answers_nearly_the_same_in(
    precision: str, least: float, blip_files: dict[str, Path], blip_feeds: list[Feed]
) -> None:
    onnx.checker.check_model(onnx.load(blip_files[precision]), full_check=True)
    expected = np.concatenate([_run(blip_files["fp32"], feed)["logits"] for feed in blip_feeds])
    found = np.concatenate([_run(blip_files[precision], feed)["logits"] for feed in blip_feeds])
    assert cosines(found, expected).min() > least


@pytest.mark.parametrize("precision", QUANTIZED)
def test_logits_that_share_the_table_still_read_floats(precision: str, blip_files: dict[str, Path]) -> None:
    graph = onnx.load(blip_files[precision]).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    (last,) = (node for node in graph.node if "logits" in node.output)
    maker = {name: node for node in graph.node for name in node.output}
    if last.op_type == "Add":  # a Gemm that became a MatMul
        last = maker[last.input[0]]
    assert types[last.input[1]] == TensorProto.FLOAT
