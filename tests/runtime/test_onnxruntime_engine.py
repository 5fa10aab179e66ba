"""The default engine: what it prints, what it raises, how it treats threads."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketlens.core.bundle import Bundle, TensorSpec, load_bundle
from pocketlens.core.errors import BundleIncomplete, EngineError
from pocketlens.runtime.engines import Engine, open_engine
from pocketlens.runtime.selection import choose_graphs


def _open(bundle: Bundle, threads: int | None = 1) -> Engine:
    return open_engine("onnxruntime", bundle, choose_graphs(bundle, engine="onnxruntime"), threads=threads)


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_outputs_are_named_and_shaped_as_the_record_says(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    engine = _open(bundle)
    inputs: dict[str, np.ndarray] = {"pixels": _pixels(3)}
    for role, then in (("image_encoder", "visual_tokens"), ("caption_prefill", "cache")):
        record = bundle.graph(role, target="onnx", precision="fp32")  # type: ignore[arg-type]
        outputs = engine.run(role, inputs)  # type: ignore[arg-type]
        assert list(outputs) == [spec.name for spec in record.outputs]
        for spec in record.outputs:
            assert outputs[spec.name].shape == (3, *spec.shape[1:])
            assert outputs[spec.name].dtype == spec.dtype
        inputs = {then: outputs[then]}


def test_a_file_that_is_no_graph_is_an_engine_error_and_prints_nothing(
    bundle_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = load_bundle(bundle_copy)  # verified first, broken afterwards
    bundle.path(bundle.graph("image_encoder", target="onnx", precision="fp32")).write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match="ONNX Runtime can load"):
        _open(bundle).run("image_encoder", {"pixels": _pixels(1)})
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_vanished_is_an_engine_error(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    bundle.path(bundle.graph("image_encoder", target="onnx", precision="fp32")).unlink()
    with pytest.raises(EngineError, match=r"image_encoder\.onnx"):
        _open(bundle).run("image_encoder", {"pixels": _pixels(1)})


@pytest.mark.parametrize(
    "inputs",
    [{"pixels": np.zeros((1, 9, 9, 3), np.uint8)}, {"pixels": np.zeros((1, 8, 8, 3), np.float32)}, {}],
)
def test_inputs_that_do_not_fit_are_an_engine_error_and_print_nothing(
    bundle_path: Path, inputs: dict[str, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match="image_encoder graph that runs"):
        _open(load_bundle(bundle_path)).run("image_encoder", inputs)
    assert capfd.readouterr() == ("", "")


def test_a_graph_with_other_outputs_than_its_record_is_an_engine_error(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    graphs = choose_graphs(bundle, engine="onnxruntime")
    extra = TensorSpec(name="extra", dtype="float32", shape=(-1, 1))
    record = graphs["image_encoder"]
    graphs["image_encoder"] = msgspec.structs.replace(record, outputs=(*record.outputs, extra))
    with pytest.raises(EngineError, match="image_encoder"):
        open_engine("onnxruntime", bundle, graphs).run("image_encoder", {"pixels": _pixels(1)})


def test_a_role_that_was_not_chosen_is_incomplete(bundle_path: Path) -> None:
    engine = open_engine("onnxruntime", load_bundle(bundle_path), {})
    with pytest.raises(BundleIncomplete, match="text_encoder"):
        engine.run("text_encoder", {"ids": np.zeros((1, 16), np.int32)})


def test_threads_change_nothing_about_the_answer(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    answers = [_open(bundle, threads).run("image_encoder", {"pixels": _pixels(4)}) for threads in (1, 2, None)]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer["embedding"], answers[0]["embedding"], atol=1e-6)


def test_several_threads_may_share_an_engine(bundle_path: Path) -> None:
    engine, pixels = _open(load_bundle(bundle_path)), _pixels(32)
    whole = engine.run("image_encoder", {"pixels": pixels})["embedding"]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda i: engine.run("image_encoder", {"pixels": pixels[[i]]})["embedding"][0], range(32)))
    np.testing.assert_allclose(rows, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "package", "remedy"),
    [
        ("onnxruntime", "onnxruntime", "pip install pocketlens"),
        ("executorch", "executorch.runtime", r"pip install 'pocketlens\[executorch\]'"),
    ],
)
def test_an_engine_that_is_not_installed_says_how_to_get_it(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, package: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=remedy):
        open_engine(engine, load_bundle(bundle_path), {})  # type: ignore[arg-type]
