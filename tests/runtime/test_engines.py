"""Names of engines, options of providers, and CoreML up to the place where it needs Apple's system."""

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from pocketlens.core.bundle import Bundle, GraphRecord, TensorSpec, load_bundle
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines import open_engine
from pocketlens.runtime.engines.coreml_engine import _check_system, answer, feed, picture_inputs
from pocketlens.runtime.engines.providers import ALLOWED, batch_limit, engine_cache_folder, provider_options
from pocketlens.runtime.engines.specs import EngineSpec, parse_engine, parse_engines, specs_here


@pytest.fixture
def record(bundle_path: Path) -> GraphRecord:
    return load_bundle(bundle_path).graph("image_encoder", target="onnx", precision="fp32")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("onnxruntime", EngineSpec("onnxruntime")),
        ("onnxruntime:cpu", EngineSpec("onnxruntime")),
        ("onnxruntime:tensorrt", EngineSpec("onnxruntime", "tensorrt")),
        ("executorch", EngineSpec("executorch")),
        ("coreml", EngineSpec("coreml")),
    ],
)
def test_a_name_is_read_and_written(name: str, spec: EngineSpec) -> None:
    assert parse_engine(name) == spec
    assert parse_engine(str(spec)) == spec


@pytest.mark.parametrize("name", ["", "ONNXRUNTIME", "onnxruntime:", "executorch:cuda", "tensorflow", "coreml:cpu"])
def test_another_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(EngineError, match="onnxruntime:qnn"):
        parse_engine(name)


def test_several_names_keep_their_order_and_none_counts_twice() -> None:
    found = parse_engines("coreml, onnxruntime,coreml,onnxruntime:cpu")
    assert found == (EngineSpec("coreml"), EngineSpec("onnxruntime"))


def test_tensorrt_takes_its_own_graphs_and_plain_ones(record: GraphRecord) -> None:
    own = msgspec.structs.replace(record, engine="tensorrt")
    assert EngineSpec("onnxruntime", "tensorrt").runs(own)
    assert EngineSpec("onnxruntime", "tensorrt").runs(record)
    assert not EngineSpec("onnxruntime").runs(own)
    assert not EngineSpec("executorch").runs(record)


def test_the_cpu_is_always_here() -> None:
    assert specs_here()[0] == EngineSpec("onnxruntime")


def test_tensorrt_gets_the_settings_of_the_record_and_a_cache_of_this_user(
    bundle_path: Path, record: GraphRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_prefix": "pocketlens_image_encoder",
        "trt_profile_max_shapes": "pixels:8x96x96x3,mask:8x4",
    }
    options = provider_options("tensorrt", load_bundle(bundle_path), msgspec.structs.replace(record, settings=settings))
    folder = Path(options.pop("trt_engine_cache_path"))
    assert options == settings
    assert folder == engine_cache_folder(record)
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trt_extra_plugin_lib_paths", "/tmp/evil.so"),
        ("trt_engine_cache_path", "/home"),
        ("trt_ep_context_file_path", "x"),
        ("trt_int8_calibration_table_name", "table"),
        ("trt_onnx_model_folder_path", "x"),
        ("trt_engine_cache_prefix", "../../up"),
        ("trt_fp16_enable", "1\n2"),
        ("device_id", "1"),
    ],
)
def test_settings_that_load_or_write_files_are_refused(
    bundle_path: Path, record: GraphRecord, name: str, value: str
) -> None:
    hostile = msgspec.structs.replace(record, settings={name: value})
    with pytest.raises(EngineError, match="only say how TensorRT computes"):
        provider_options("tensorrt", load_bundle(bundle_path), hostile)


def test_no_allowed_setting_is_a_path() -> None:
    assert not [name for name in ALLOWED if re.search("path|lib|folder|dump|table", name)]


@pytest.mark.parametrize(
    ("shapes", "limit"), [("pixels:8x96x96x3", 8), ("token:4,position:4,cache:4x3x2", 4), ("", None)]
)
def test_the_batch_limit_is_that_of_the_profile(record: GraphRecord, shapes: str, limit: int | None) -> None:
    settings = {"trt_profile_max_shapes": shapes} if shapes else {}
    assert batch_limit(msgspec.structs.replace(record, settings=settings)) == limit


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "qnn"])
def test_a_provider_that_the_package_lacks_is_refused_when_it_is_opened(bundle_path: Path, provider: str) -> None:
    import onnxruntime

    name = {"cuda": "CUDA", "tensorrt": "Tensorrt", "qnn": "QNN"}[provider] + "ExecutionProvider"
    if name in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    with pytest.raises(EngineError, match=f"expected ONNX Runtime's {name}"):
        open_engine(f"onnxruntime:{provider}", load_bundle(bundle_path), {})


@pytest.mark.parametrize(("system", "version"), [("linux", ""), ("darwin", "11.7.1"), ("darwin", ""), ("win32", "")])
def test_coreml_runs_on_apple_systems_only(system: str, version: str) -> None:
    with pytest.raises(EngineError, match="macOS 12"):
        _check_system(system, version)


def test_coreml_takes_a_new_enough_macos() -> None:
    _check_system("darwin", "12.0")
    _check_system("darwin", "15.3.1")


@pytest.mark.skipif(sys.platform == "darwin", reason="it runs there")
def test_coreml_says_so_before_it_reads_anything(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match="macOS"):
        open_engine("coreml", load_bundle(bundle_path), {})


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real `.mlpackage`: a picture and a cache of five axes in, both of them out."""
    torch = pytest.importorskip("torch", reason="makes the package")
    ct = pytest.importorskip("coremltools", reason="makes the package")

    class Both(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, pixels: object, cache: object) -> tuple[object, object]:
            return pixels.mean(dim=(2, 3)) / 255, cache * 2.0  # type: ignore[attr-defined, operator]

    example = (torch.zeros(1, 3, 8, 6), torch.zeros(1, 4, 2, 5, 3))
    path = tmp_path_factory.mktemp("package") / "both.mlpackage"
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        ct.convert(
            torch.export.export(Both(), example).run_decompositions({}),
            inputs=[
                ct.ImageType(name="pixels", shape=(1, 3, 8, 6), color_layout=ct.colorlayout.RGB),
                ct.TensorType(name="cache", shape=(1, 4, 2, 5, 3)),
            ],
            outputs=[
                ct.TensorType(name="embedding", dtype=np.float32),
                ct.TensorType(name="cache_out", dtype=np.float32),
            ],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        ).save(str(path))
    return path


@pytest.mark.slow  # coremltools takes its time
@pytest.mark.filterwarnings("ignore")  # coremltools warns about the versions of packages that it does not know
def test_what_is_fed_to_coreml_fits_the_package_as_it_was_saved(package: Path, bundle_path: Path) -> None:
    from coremltools.models import MLModel

    model = MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    record = msgspec.structs.replace(
        load_bundle(bundle_path).manifest.graphs[0],
        engine="coreml",
        inputs=(
            TensorSpec(name="pixels", dtype="uint8", shape=(1, 8, 6, 3)),
            TensorSpec(name="cache", dtype="float32", shape=(1, 4, 2, 5, 3)),
        ),
        outputs=(
            TensorSpec(name="embedding", dtype="float32", shape=(1, 3)),
            TensorSpec(name="cache", dtype="float32", shape=(1, 4, 2, 5, 3)),
        ),
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    cache = rng.normal(size=(2, 2, 2, 2, 5, 3)).astype(np.float32)
    assert picture_inputs(spec) == {"pixels"}
    fed = feed(record, {"pixels": pixels, "cache": cache}, 1, picture_inputs(spec))
    described = {i.name: i.type for i in spec.description.input}
    assert fed.keys() == described.keys()
    assert isinstance(fed["pixels"], Image.Image)
    assert fed["pixels"].size == (described["pixels"].imageType.width, described["pixels"].imageType.height)
    np.testing.assert_array_equal(np.asarray(fed["pixels"]), pixels[1])
    assert fed["cache"].shape == tuple(described["cache"].multiArrayType.shape)
    np.testing.assert_array_equal(fed["cache"].ravel(), cache[1].ravel())
    # coremltools' own check of names and types, the last thing that runs without CoreML
    model._verify_input_dict(dict(fed))

    names = [o.name for o in spec.description.output]
    values = {"embedding": np.ones((1, 3), np.float32), "cache_out": fed["cache"] * 2}
    assert set(names) == values.keys()
    outputs = answer(record, values)
    assert {name: value.shape for name, value in outputs.items()} == {"embedding": (1, 3), "cache": (1, 4, 2, 5, 3)}
    np.testing.assert_array_equal(outputs["cache"].ravel(), cache[1].ravel() * 2)
    with pytest.raises(ValueError, match="no output embedding among cache_out"):
        answer(record, {"cache_out": values["cache_out"]})


@pytest.mark.slow  # lowering takes its time
@pytest.mark.filterwarnings("ignore")  # torch and ExecuTorch warn about their own code
def test_executorch_engines_of_different_pool_sizes_take_turns(tmp_path: Path, bundle_path: Path) -> None:
    """To reset ExecuTorch's pool under a loaded method kills the process, so this test fails by dying."""
    pytest.importorskip("executorch", reason="the optional engine is not installed")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(192, 8)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = pixels.reshape(1, 192)
            return self.layer(flat), flat

    torch.manual_seed(0)
    program = torch.export.export(Tower().eval(), (torch.zeros(1, 8, 8, 3),))
    path = tmp_path / "tower.pte"
    path.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    bundle = load_bundle(bundle_path)
    record = msgspec.structs.replace(
        bundle.manifest.graphs[0],
        engine="executorch",
        path=str(path),
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 8, 8, 3)),),
    )
    one, two = (
        open_engine("executorch", Bundle(tmp_path, bundle.manifest), {"image_encoder": record}, threads=n)
        for n in (1, 2)
    )
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    answers = [e.run("image_encoder", {"pixels": pixels})["embedding"] for _ in range(4) for e in (one, two)]
    for found in answers[1:]:
        np.testing.assert_allclose(found, answers[0], atol=1e-5)
