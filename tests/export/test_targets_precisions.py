"""Every precision beyond fp32 and static int8: it runs, it answers nearly the same, and it holds what it says."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pocketlens.core.bundle import Bundle, GraphRecord, Role, tree_digest
from pocketlens.core.errors import ExportError
from pocketlens.core.manifest import decode_manifest, encode_manifest
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import graph_path
from pocketlens.export.measure import graph_records
from pocketlens.export.parity import cosines
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.targets import TARGETS, Target, open_target
from pocketlens.export.targets.tensorrt import TensorrtTarget
from pocketlens.runtime.engines import Engine, open_engine

COMPACT = ("fp32", "fp16", "int8_dynamic", "int4")


@pytest.fixture(scope="module")
def onnx_files(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The text encoder and the decode step in all precisions that need no calibration."""
    folder = tmp_path_factory.mktemp("onnx")
    files = {}
    for role in ("text_encoder", "caption_decode"):
        paths = {precision: folder / f"{role}-{precision}.onnx" for precision in COMPACT}
        open_target("onnx").export(graphs[role], paths, [])
        files |= {(role, precision): path for precision, path in paths.items()}
    return files


def _engine(bundle: Bundle, target: Target, graph: Graph, path: Path) -> Engine:
    record = GraphRecord(
        role=graph.role,
        target="x",
        precision="x",
        engine="executorch" if target.engine == "executorch" else "onnxruntime",
        path=path.name,
        sha256=tree_digest(path),
        bytes=path.stat().st_size,
        inputs=target.inputs(graph),
        outputs=target.outputs(graph),
    )
    return open_engine(record.engine, Bundle(path.parent, bundle.manifest), {graph.role: record}, threads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.999999), ("fp16", 0.9999), ("int8_dynamic", 0.99), ("int4", 0.95)]
)
def test_onnx_text_embeddings_stay_close_at_any_batch(
    onnx_files: dict[tuple[str, str], Path],
    graphs: dict[str, Graph],
    bundle: Bundle,
    reference: Reference,
    precision: str,
    least: float,
) -> None:
    engine = _engine(bundle, open_target("onnx"), graphs["text_encoder"], onnx_files["text_encoder", precision])
    together = engine.run("text_encoder", {"ids": reference.ids})["embedding"]
    assert together.dtype == np.float32
    assert cosines(together, reference.text_embeddings).min() >= least
    alone = engine.run("text_encoder", {"ids": reference.ids[:1]})["embedding"]
    assert cosines(alone, together[:1]).min() > 0.9999


def _types(path: Path) -> dict[str, int]:
    """Return bytes of weights by type, large ones only."""
    sizes: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size >= 256:
            name = TensorProto.DataType.Name(tensor.data_type)
            sizes[name] = sizes.get(name, 0) + values.nbytes
    return sizes


def test_onnx_weights_are_stored_as_the_precision_says(onnx_files: dict[tuple[str, str], Path]) -> None:
    full = _types(onnx_files["text_encoder", "fp32"])["FLOAT"]
    half = _types(onnx_files["text_encoder", "fp16"])
    assert half.get("FLOAT", 0) == 0
    assert half["FLOAT16"] == full // 2
    dynamic = _types(onnx_files["text_encoder", "int8_dynamic"])
    assert dynamic["INT8"] + dynamic["UINT8"] > 0.2 * full  # a quarter of it but for norms and positions
    four = onnx.load(onnx_files["text_encoder", "int4"]).graph
    packed = [node for node in four.node if node.op_type == "MatMulNBits"]
    # query, key, value, output, two of the feed-forward, and the projection, which torch exports as a Gemm
    assert len(packed) == 7
    assert not [node for node in four.node if node.op_type == "Gemm"]
    assert {a.i for node in packed for a in node.attribute if a.name == "bits"} == {4}


@pytest.mark.parametrize("precision", ["int8_dynamic", "int4"])
def test_onnx_logits_stay_in_float(onnx_files: dict[tuple[str, str], Path], precision: str) -> None:
    graph = onnx.load(onnx_files["caption_decode", precision]).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type in {"Gemm", "MatMul"}
    assert {types[name] for name in last.input if name in types} == {TensorProto.FLOAT}
    assert {node.op_type for node in graph.node} & {"MatMulInteger", "MatMulNBits"}


def test_onnx_decode_step_in_half_precision_takes_and_gives_float_caches(
    onnx_files: dict[tuple[str, str], Path], graphs: dict[str, Graph], bundle: Bundle, feeds: dict[str, list[Feed]]
) -> None:
    target, graph = open_target("onnx"), graphs["caption_decode"]
    exact, half = (_engine(bundle, target, graph, onnx_files["caption_decode", p]) for p in ("fp32", "fp16"))
    for feed in feeds["caption_decode"]:
        expected, found = exact.run("caption_decode", feed), half.run("caption_decode", feed)
        assert found["cache"].dtype == np.float32
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=2e-2)
        np.testing.assert_allclose(found["cache"], expected["cache"], atol=1e-2)


@pytest.fixture(scope="module")
def tensorrt_files(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tensorrt")
    paths = {precision: folder / precision / "image_encoder.onnx" for precision in ("fp16", "int8")}
    for path in paths.values():
        path.parent.mkdir()
    open_target("tensorrt").export(graphs["image_encoder"], paths, feeds["image_encoder"])
    return paths


def test_tensorrt_graphs_answer_like_the_eager_student(
    tensorrt_files: dict[str, Path], graphs: dict[str, Graph], bundle: Bundle, reference: Reference
) -> None:
    for precision, least in (("fp16", 0.99999), ("int8", 0.95)):
        engine = _engine(bundle, open_target("tensorrt"), graphs["image_encoder"], tensorrt_files[precision])
        found = engine.run("image_encoder", {"pixels": reference.pixels})["embedding"]
        assert cosines(found, reference.embeddings).mean() >= least


def test_tensorrt_quantization_is_symmetric_and_signed_with_biases_in_float(tensorrt_files: dict[str, Path]) -> None:
    graph = onnx.load(tensorrt_files["int8"]).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scaled = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(scaled) >= 20
    for node in scaled:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8, node.name
        assert not zero.any(), node.name
    made = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    biases = [constants[node.input[2]] for node in convolutions if len(node.input) > 2]
    assert biases
    assert all(bias.dtype == np.float32 for bias in biases)


def test_tensorrt_settings_name_the_shapes_of_one_profile(graphs: dict[str, Graph]) -> None:
    options = TensorrtTarget().settings(graphs["image_encoder"], "int8")
    assert options["trt_profile_min_shapes"] == "pixels:1x64x64x3"
    assert options["trt_profile_max_shapes"] == "pixels:8x64x64x3"
    assert options["trt_int8_enable"] == options["trt_fp16_enable"] == options["trt_engine_cache_enable"] == "1"
    half = TensorrtTarget().settings(graphs["image_encoder"], "fp16")
    assert half["trt_int8_enable"] == "0"
    assert all(isinstance(value, str) for value in half.values())


def test_a_tensorrt_record_carries_its_settings_through_the_manifest(
    graphs: dict[Role, Graph], bundle: Bundle, tensorrt_files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / graph_path("tensorrt-int8", "image_encoder")
    path.parent.mkdir(parents=True)
    shutil.copyfile(tensorrt_files["int8"], path)
    (record,) = graph_records("tensorrt-int8", tmp_path, graphs, roles=["image_encoder"])
    assert record.settings == TensorrtTarget().settings(graphs["image_encoder"], "int8")
    manifest = msgspec.structs.replace(bundle.manifest, graphs=(*bundle.manifest.graphs, record))
    stored = encode_manifest(manifest)
    assert decode_manifest(stored, "manifest").graphs[-1] == record
    # A manifest from before there were settings has none, and none of ONNX Runtime's graphs needs any.
    older = msgspec.json.decode(stored)
    for graph in older["graphs"]:
        assert graph.pop("settings") == (record.settings if graph["target"] == "tensorrt" else {})
    assert {len(g.settings) for g in decode_manifest(msgspec.json.encode(older), "manifest").graphs} == {0}


def test_the_build_script_hands_trtexec_the_graph_its_shapes_and_an_output_folder(
    tensorrt_files: dict[str, Path], tmp_path: Path
) -> None:
    # trtexec is not on this machine. Whatever stands in its place is called by the real shell with the real arguments.
    recorder = tmp_path / "trt exec"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    script = tensorrt_files["int8"].parent / "build_image_encoder.sh"
    ran = subprocess.run(
        ["sh", str(script), str(tmp_path)],
        env={**os.environ, "TRTEXEC": str(recorder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        f"--onnx={tensorrt_files['int8']}",
        f"--saveEngine={tmp_path}/image_encoder.engine",
        "--fp16",
        "--int8",
        "--minShapes=pixels:1x64x64x3",
        "--optShapes=pixels:1x64x64x3",
        "--maxShapes=pixels:8x64x64x3",
        f"--timingCacheFile={tmp_path}/timing.cache",
    ]
    alone = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    assert alone.returncode != 0
    assert "usage: build_image_encoder.sh FOLDER" in alone.stderr


def test_executorch_text_tower_with_dynamic_int8_and_8_bit_tables_runs(
    graphs: dict[str, Graph], bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    assert_runs("8da8w", 0.99, graphs, bundle, reference, tmp_path)


@pytest.mark.slow
def test_executorch_text_tower_with_4_bit_weights_runs(
    graphs: dict[str, Graph], bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    assert_runs("8da4w", 0.95, graphs, bundle, reference, tmp_path)


def assert_runs(
    precision: str, least: float, graphs: dict[str, Graph], bundle: Bundle, reference: Reference, folder: Path
) -> None:
    target, graph = open_target("executorch"), graphs["text_encoder"]
    path = folder / "text.pte"
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    taken = target.export(graph, {precision: path}, [])
    assert taken is not None
    assert taken[precision].backend == "XNNPACK"
    assert taken[precision].share > 0.5
    weights = sum(p.numel() for p in graph.module.parameters())
    assert path.stat().st_size < 4 * weights  # less than the float weights alone
    found = _engine(bundle, target, graph, path).run("text_encoder", {"ids": reference.ids})["embedding"]
    assert cosines(found, reference.text_embeddings).min() >= least
    after = graph.module.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())  # the student itself is left alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"), [("executorch_coreml", b"CoreMLBackend"), ("executorch_vulkan", b"VulkanBackend")]
)
@pytest.mark.parametrize("role", ["image_encoder", "text_encoder", "caption_decode"])
def test_executorch_programs_for_backends_that_do_not_run_here_are_lowered_and_say_so(
    name: str, backend: bytes, role: Role, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    target, path = open_target(name), tmp_path / "x.pte"
    taken = target.export(graphs[role], {"fp16": path}, [])
    assert taken is not None
    assert taken["fp16"].share > 0.5
    assert backend in path.read_bytes()
    assert "run nowhere yet" in target.notes(graphs[role])[0]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["image_encoder", "text_encoder", "caption_prefill", "caption_decode"])
def test_litert_graphs_answer_like_the_eager_student(
    role: Role, graphs: dict[str, Graph], feeds: dict[str, list[Feed]], tmp_path: Path
) -> None:
    import torch

    pytest.importorskip("litert_torch", reason="needs the extra litert")
    from ai_edge_litert.interpreter import Interpreter

    target, graph, path = open_target("litert"), graphs[role], tmp_path / "x.tflite"
    target.export(graph, {"fp32": path}, [])
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    for feed in feeds[role][:3]:
        with torch.no_grad():
            result = graph.module(*(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs))
        expected = result if isinstance(result, tuple) else (result,)
        found = runner(**{f"args_{index}": feed[spec.name] for index, spec in enumerate(graph.inputs)})
        for index, value in enumerate(expected):
            np.testing.assert_allclose(found[f"output_{index}"], value.numpy(), atol=1e-4)


def test_without_its_package_a_target_says_what_to_install(
    graphs: dict[str, Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(ExportError, match=r"expected the package litert-torch; .*pip install 'pocketlens\[litert\]'"):
        open_target("litert").export(graphs["text_encoder"], {"fp32": tmp_path / "x.tflite"}, [])


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "coremlstate"])
def test_an_unknown_precision_is_told_with_those_that_exist(
    name: str, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"precision 'fp12': expected one of fp"):
        open_target(name).export(graphs["text_encoder"], {"fp12": tmp_path / "x"}, [])
    assert not list(tmp_path.iterdir())


def test_a_delegation_says_its_share_in_a_sentence() -> None:
    assert Delegation("XNNPACK", 30, 10, 1).sentence() == "XNNPACK runs 30 of 40 operators (75.0%), in 1 part."
    assert Delegation("XNNPACK", 0, 0, 0).share == 0
