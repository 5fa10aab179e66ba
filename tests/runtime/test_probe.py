"""Graphs of unknown origin are tried in a child: what they do there is a typed error here."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketlens.core.bundle import file_sha256, load_bundle, write_bundle
from pocketlens.core.errors import BundleCrashed, BundleTampered, EngineError, PocketlensError
from pocketlens.runtime.probe import probe_graphs
from pocketlens.runtime.sandbox import Limits

Hostile = Callable[[bytes], Path]
GRAPH = "graphs/onnx-fp32/image_encoder.onnx"


@pytest.fixture
def hostile(bundle_path: Path, tmp_path: Path) -> Hostile:
    """Builds a bundle, whole and sealed, with another file for one of its graphs."""

    def build(data: bytes) -> Path:
        staged = Path(shutil.copytree(bundle_path, tmp_path / "staged"))
        (staged / GRAPH).write_bytes(data)
        manifest = load_bundle(bundle_path).manifest
        graphs = tuple(
            msgspec.structs.replace(graph, sha256=file_sha256(staged / GRAPH)) if graph.path == GRAPH else graph
            for graph in manifest.graphs
        )
        return write_bundle(tmp_path / "hostile", msgspec.structs.replace(manifest, graphs=graphs), staged).root

    return build


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str) -> bytes:  # type: ignore[type-arg]
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 8, 8, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _endless() -> bytes:
    """A valid graph whose Loop makes 2^62 turns."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["again_out"]),
            helper.make_node("Sin", ["carried"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("again_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, [1]),
        ],
    )
    constants = {"turns": np.array(2**62), "yes": np.array(True), "start": np.ones(1, np.float32)}
    loop = helper.make_node("Loop", ["turns", "yes", "start"], ["embedding"], body=body)
    return _model([loop], constants, "embedding")


def _greedy() -> bytes:
    """A valid graph of a few bytes that asks for 2^42 of memory, by the value of a picture's level."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["wide"], ["level"], keepdims=0),
        helper.make_node("Add", ["level", "huge"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["embedding"]),
    ]
    return _model(nodes, {"huge": np.array([2**40])}, "embedding")


def test_a_good_bundle_passes_and_every_graph_is_named(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    report = probe_graphs(bundle)
    assert report.passed == tuple(graph.path for graph in bundle.manifest.graphs)
    assert report.skipped == ()


def test_a_graph_that_never_ends_is_a_crash(hostile: Hostile) -> None:
    with pytest.raises(BundleCrashed, match=r"onnx-fp32/image_encoder\.onnx.*processor time"):
        probe_graphs(load_bundle(hostile(_endless())), limits=Limits(cpu_s=3))


def test_a_graph_that_asks_for_all_memory_is_a_typed_error(hostile: Hostile) -> None:
    with pytest.raises((BundleCrashed, EngineError), match=r"image_encoder\.onnx"):
        probe_graphs(load_bundle(hostile(_greedy())), limits=Limits(memory_bytes=2**30))


def test_a_shape_in_the_manifest_that_asks_for_all_memory_is_a_crash(bundle_path: Path, tmp_path: Path) -> None:
    staged = Path(shutil.copytree(bundle_path, tmp_path / "staged"))
    manifest = load_bundle(bundle_path).manifest
    first = manifest.graphs[0]
    shape = msgspec.structs.replace(first.inputs[0], shape=(-1, 2**20, 2**20, 3))
    graphs = (msgspec.structs.replace(first, inputs=(shape,)), *manifest.graphs[1:])
    root = write_bundle(tmp_path / "hostile", msgspec.structs.replace(manifest, graphs=graphs), staged).root
    with pytest.raises(BundleCrashed, match="no memory left"):
        probe_graphs(load_bundle(root), limits=Limits(memory_bytes=2**30))


@pytest.mark.parametrize("seed", range(3))
def test_a_mangled_graph_is_a_typed_error_or_none(seed: int, hostile: Hostile, bundle_path: Path) -> None:
    numbers = np.random.default_rng(seed)
    data = np.frombuffer((bundle_path / GRAPH).read_bytes(), np.uint8).copy()
    data[numbers.integers(0, len(data), 40)] = numbers.integers(0, 256, 40)
    bundle = load_bundle(hostile(data.tobytes()))
    with pytest.raises(PocketlensError, match=r"image_encoder\.onnx"):
        probe_graphs(bundle, limits=Limits(cpu_s=20))


def test_a_bundle_that_changed_since_it_was_loaded_is_refused(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    (bundle_copy / GRAPH).write_bytes(b"something else")
    with pytest.raises(BundleTampered, match=r"image_encoder\.onnx"):
        probe_graphs(bundle)
