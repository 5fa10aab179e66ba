"""A failing engine is replaced, for good, with one event; the answer of a call is that of one engine."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketlens.core.bundle import Bundle, Manifest, file_sha256, load_bundle, write_bundle
from pocketlens.core.errors import BundleIncomplete, EngineError
from pocketlens.core.events import EngineFellBack, EngineLoaded, Event
from pocketlens.runtime import load
from pocketlens.runtime.engines import open_engine
from pocketlens.runtime.engines.fallback import Choice, FallbackEngine
from pocketlens.runtime.engines.specs import EngineSpec
from pocketlens.runtime.selection import choose_graphs

ORT = EngineSpec("onnxruntime")
Rebuilt = Callable[[Callable[[Manifest], Manifest]], Path]


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def fell_back(self) -> list[EngineFellBack]:
        return [event for event in self.events if isinstance(event, EngineFellBack)]


def _pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def _right(path: Path) -> np.ndarray:
    bundle = load_bundle(path)
    graphs = choose_graphs(bundle, engine="onnxruntime")
    return open_engine("onnxruntime", bundle, graphs, threads=1).run("image_encoder", {"pixels": _pixels()})[
        "embedding"
    ]


def _chain(bundle: Bundle) -> list[Choice]:
    return [
        Choice(ORT, bundle.graph("image_encoder", target="onnx", precision=precision), 1)
        for precision in ("fp32", "int8")
    ]


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:  # type: ignore[type-arg]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 8, 8, 3])],
        [helper.make_tensor_value_info(name, floats, None) for name in ("embedding", "visual_tokens")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _wrong_shapes() -> bytes:
    """A valid graph that loads and then fails at every call: 192 levels make no matrix of 7 columns."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["wide", "seven"], ["embedding"]),
        helper.make_node("Identity", ["wide"], ["visual_tokens"]),
    ]
    return _model(nodes, {"seven": np.array([-1, 7])})


def _nan() -> bytes:
    """A valid graph whose embeddings are 0 / 0."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Div", ["nothing", "nothing"], ["embedding"]),
        helper.make_node("Identity", ["wide"], ["visual_tokens"]),
    ]
    return _model(nodes, {"axes": np.array([2, 3]), "zero": np.zeros(1, np.float32)})


@pytest.fixture
def with_graph(bundle_path: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """Builds a bundle, whole and sealed, whose preferred image encoder is another file."""

    def build(data: bytes) -> Path:
        staged = Path(shutil.copytree(bundle_path, tmp_path / "staged"))
        name = "graphs/onnx-fp32/image_encoder.onnx"
        (staged / name).write_bytes(data)
        manifest = load_bundle(bundle_path).manifest
        graphs = tuple(
            msgspec.structs.replace(graph, sha256=file_sha256(staged / name)) if graph.path == name else graph
            for graph in manifest.graphs
        )
        return write_bundle(tmp_path / "broken", msgspec.structs.replace(manifest, graphs=graphs), staged).root

    return build


def test_a_graph_that_was_damaged_after_verification_is_replaced_once(bundle_copy: Path) -> None:
    right = _right(bundle_copy)
    sink = Recorder()
    lens = load(bundle_copy, threads=1, sink=sink)
    (bundle_copy / "graphs/onnx-fp32/image_encoder.onnx").write_bytes(b"no graph at all")
    for _ in range(3):
        vectors = list(lens.embed_images(list(_pixels())))
        np.testing.assert_allclose(np.stack(vectors), right, atol=1e-5)  # the other precision has the same weights
    version = lens.model_version
    assert sink.fell_back == [EngineFellBack(version, "image_encoder", "onnxruntime", "onnxruntime", "failed")]


@pytest.mark.parametrize(("make", "reason"), [(_wrong_shapes, "failed"), (_nan, "not_finite")])
def test_a_valid_graph_that_fails_in_a_call_is_replaced(
    with_graph: Callable[[bytes], Path], bundle_path: Path, make: Callable[[], bytes], reason: str
) -> None:
    sink = Recorder()
    lens = load(with_graph(make()), threads=1, sink=sink)
    assert isinstance(sink.events[0], EngineLoaded)  # it loads: the failure comes with the first call
    vectors = np.stack([np.asarray(v) for v in lens.embed_images(list(_pixels()))])
    np.testing.assert_allclose(vectors, _right(bundle_path), atol=1e-5)
    assert [event.reason for event in sink.fell_back] == [reason]


def test_a_provider_that_is_not_there_is_replaced_when_the_bundle_is_loaded(bundle_path: Path) -> None:
    sink = Recorder()
    lens = load(bundle_path, engine="onnxruntime:cuda,onnxruntime", threads=1, sink=sink)
    assert {(e.role, e.engine, e.replacement, e.reason) for e in sink.fell_back} == {
        (role, "onnxruntime:cuda", "onnxruntime", "unavailable")
        for role in ("image_encoder", "text_encoder", "caption_prefill", "caption_decode")
    }
    loaded = sink.events[-1]
    assert isinstance(loaded, EngineLoaded)
    assert loaded.engine == "onnxruntime"
    np.testing.assert_allclose(lens.embed_image(_pixels()[0]), _right(bundle_path)[0], atol=1e-5)


def test_an_engine_that_was_asked_for_alone_is_not_replaced(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        load(bundle_path, engine="onnxruntime:cuda")


def test_an_executorch_program_without_its_package_is_replaced(
    rebuilt: Rebuilt, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(manifest: Manifest) -> Manifest:
        graphs = tuple(
            msgspec.structs.replace(g, engine="executorch", target="executorch") if g.precision == "int8" else g
            for g in manifest.graphs
        )
        return msgspec.structs.replace(
            manifest, graphs=tuple(msgspec.structs.replace(g, preferred=True) for g in graphs)
        )

    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    sink = Recorder()
    lens = load(rebuilt(change), engine="executorch,onnxruntime", threads=1, sink=sink)
    assert {(e.engine, e.replacement, e.reason) for e in sink.fell_back} == {
        ("executorch", "onnxruntime", "unavailable")
    }
    np.testing.assert_allclose(lens.embed_image(_pixels()[0]), _right(bundle_path)[0], atol=1e-5)


def test_an_input_that_no_engine_takes_is_an_error_and_changes_nothing(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    sink = Recorder()
    engine = FallbackEngine(bundle, {"image_encoder": _chain(bundle)}, sink=sink)
    with pytest.raises(EngineError, match=r"onnx-fp32/image_encoder\.onnx"):  # the error of the one in charge
        engine.run("image_encoder", {"pixels": np.zeros((1, 9, 9, 3), np.uint8)})
    assert sink.events == []
    assert engine.current("image_encoder").record.precision == "fp32"
    engine.run("image_encoder", {"pixels": _pixels()})


def test_threads_that_meet_the_same_failure_give_one_event(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    bundle.path(_chain(bundle)[0].record).write_bytes(b"no graph at all")
    sink = Recorder()
    engine = FallbackEngine(bundle, {"image_encoder": _chain(bundle)}, sink=sink)
    barrier, answers = Barrier(4), []

    def call() -> None:
        barrier.wait()
        answers.append(engine.run("image_encoder", {"pixels": _pixels()})["embedding"])

    threads = [Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(sink.fell_back) == 1


def test_a_failure_in_the_middle_of_a_caption_is_bridged(bundle_copy: Path, pictures: list[bytes]) -> None:
    expected = load(bundle_copy, threads=1).caption(pictures[0])
    sink = Recorder()
    lens = load(bundle_copy, threads=1, sink=sink)
    lens.embed_image(pictures[0])  # the image encoder is open, the decode step is not
    (bundle_copy / "graphs/onnx-fp32/caption_decode.onnx").unlink()
    assert lens.caption(pictures[0]).token_ids == expected.token_ids
    assert [(event.role, event.reason) for event in sink.fell_back] == [("caption_decode", "failed")]


def test_a_cache_of_five_axes_is_taken_by_a_graph_with_six(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    record = bundle.graph("caption_decode", target="onnx", precision="fp32")
    engine = FallbackEngine(bundle, {"caption_decode": [Choice(ORT, record, 1)]})
    rng = np.random.default_rng(1)
    cache = rng.normal(size=(2, 1, 2, 2, 12, 4)).astype(np.float32)
    feed = {"token": np.array([1, 3], np.int32), "position": np.array([4, 4], np.int32)}
    whole = engine.run("caption_decode", {**feed, "cache": cache})["logits"]
    merged = engine.run("caption_decode", {**feed, "cache": cache.reshape(2, 2, 2, 12, 4)})["logits"]
    np.testing.assert_array_equal(whole, merged)


def test_a_role_without_a_chain_is_named(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    with pytest.raises(BundleIncomplete, match="text_encoder"):
        FallbackEngine(bundle, {"image_encoder": _chain(bundle)}).run("text_encoder", {})
