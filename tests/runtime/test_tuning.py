"""`tune` measures right graphs in a child, keeps out wrong and deadly ones, and `load` uses what it found."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketlens.core.bundle import Bundle, Manifest, file_sha256, load_bundle, write_bundle
from pocketlens.core.errors import BundleCrashed, BundleSchemaError, EngineError
from pocketlens.core.events import EngineLoaded, Event
from pocketlens.runtime import load
from pocketlens.runtime.engines import open_engine
from pocketlens.runtime.engines.specs import EngineSpec
from pocketlens.runtime.sandbox import Limits
from pocketlens.runtime.selection import choose_graphs, plan_engines
from pocketlens.runtime.tuning import Profile, load_profile, profile_path, this_device, tune, tuner
from pocketlens.runtime.tuning.profile import save_profile

ROLES = ("image_encoder", "text_encoder", "caption_prefill", "caption_decode")
Graphs = dict[str, bytes]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _golden(bundle: Bundle, folder: Path) -> None:
    """Write the golden files that the fp32 graphs of `bundle` give."""
    folder.mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    ids = np.zeros((2, 16), np.int32)
    ids[:, :4] = [[1, 7, 9, 2], [1, 11, 4, 2]]
    engine = open_engine("onnxruntime", bundle, choose_graphs(bundle, engine="onnxruntime", precision="fp32"))
    image = engine.run("image_encoder", {"pixels": pixels})
    cache = engine.run("caption_prefill", {"visual_tokens": image["visual_tokens"]})["cache"]
    captions: list[list[int]] = [[] for _ in pixels]
    token = np.ones(3, np.int32)
    for place in range(8):
        step = {"token": token, "position": np.full(3, 4 + place, np.int32), "cache": cache}
        outputs = engine.run("caption_decode", step)
        token, cache = outputs["logits"].argmax(axis=1).astype(np.int32), outputs["cache"]
        for row, caption in enumerate(captions):
            if 2 not in caption:
                caption.append(int(token[row]))
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "embeddings.npy", image["embedding"])
    np.save(folder / "text_embeddings.npy", engine.run("text_encoder", {"ids": ids})["embedding"])
    golden = {"pictures": [], "caption_ids": captions, "texts": [], "text_ids": ids.tolist()}
    (folder / "golden.json").write_bytes(msgspec.json.encode(golden))


@pytest.fixture
def golden_bundle(bundle_path: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Builds a bundle with golden files and, by path, other graphs than the tiny ones."""

    def build(
        graphs: Graphs | None = None, change: Callable[[Manifest], Manifest] = lambda manifest: manifest
    ) -> Bundle:
        staged = Path(shutil.copytree(bundle_path, tmp_path / "staged"))
        _golden(load_bundle(bundle_path), staged / "golden")
        for name, data in (graphs or {}).items():
            (staged / name).write_bytes(data)
        manifest = load_bundle(bundle_path).manifest
        records = tuple(
            msgspec.structs.replace(graph, sha256=file_sha256(staged / graph.path)) for graph in manifest.graphs
        )
        manifest = change(msgspec.structs.replace(manifest, graphs=records))
        return write_bundle(tmp_path / "golden_bundle", manifest, staged)

    return build


def _turned(path: Path) -> bytes:
    """The image encoder with its embedding's axes in another order: finite, of unit norm, and wrong."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "image_projection":
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.roll(value, 1, axis=1).copy(), tensor.name))
    return bytes(model.SerializeToString())


def _endless() -> bytes:
    """A valid graph whose Loop makes 2^62 turns."""
    again = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Sin", ["x"], ["x_out"])],
        "body",
        [again("turn", TensorProto.INT64, []), again("go", TensorProto.BOOL, []), again("x", TensorProto.FLOAT, [1])],
        [again("go_out", TensorProto.BOOL, []), again("x_out", TensorProto.FLOAT, [1])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "start"], ["embedding"], body=body)],
        "endless",
        [again("ids", TensorProto.INT32, ["B", 16])],
        [again("embedding", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(2**62), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.ones(1, np.float32), "start"),
        ],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )


def test_every_candidate_is_measured_and_load_uses_the_fastest(golden_bundle: Callable[..., Bundle]) -> None:
    bundle = golden_bundle()
    profile = tune(bundle, engines="onnxruntime", threads=1, limit_s=5)
    assert [(m.role, m.precision) for m in profile.measurements] == [(r, p) for r in ROLES for p in ("fp32", "int8")]
    for m in profile.measurements:
        assert m.status == "measured"
        assert m.figure is not None
        assert m.limit is not None
        assert m.figure >= m.limit
        assert m.runs >= 8
        assert m.p50_ms is not None
        assert m.p90_ms is not None
        assert 0 < m.p50_ms <= m.p90_ms
    assert load_profile(bundle) == profile
    events: list[Event] = []

    class Sink:
        def emit(self, event: Event) -> None:
            events.append(event)

    lens = load(bundle.root, sink=Sink())
    assert lens.plan is not None
    assert lens.plan.chosen_by == "tuned"
    assert lens.plan.first("image_encoder").threads == 1
    assert isinstance(events[0], EngineLoaded)
    assert events[0].chosen_by == "tuned"
    assert lens.embed_image(np.zeros((8, 8, 3), np.uint8)).shape == (8,)


def test_without_a_measurement_the_exporting_machine_chooses_and_says_so(golden_bundle: Callable[..., Bundle]) -> None:
    bundle = golden_bundle()
    assert plan_engines(bundle).chosen_by == "exported"
    assert plan_engines(bundle).first("image_encoder").record.precision == "fp32"
    assert plan_engines(bundle, engine="onnxruntime", precision="int8").chosen_by == "asked"


def _with_times(bundle: Bundle, times: dict[tuple[str, str, int], float]) -> Profile:
    """Keep a profile of this bundle and device with these medians, by role, precision and threads."""
    measurements = []
    for (role, precision, threads), ms in times.items():
        record = next(g for g in bundle.manifest.graphs if (g.role, g.precision) == (role, precision))
        candidate = tuner.Candidate(record.role, "onnxruntime", precision, record.path, threads)
        measurements.append(candidate.outcome(status="measured", figure=1.0, limit=0.9, p50_ms=ms, p90_ms=ms, runs=9))
    made = Profile(
        model_version=bundle.manifest.model_version,
        bundle_sha256=file_sha256(bundle.root / "SHA256SUMS"),
        device=this_device(),
        seconds=1.0,
        measurements=tuple(measurements),
    )
    save_profile(bundle, made)
    return made


def test_each_role_takes_its_own_fastest_and_a_tie_goes_to_the_plainer(golden_bundle: Callable[..., Bundle]) -> None:
    bundle = golden_bundle()
    _with_times(
        bundle,
        {
            ("image_encoder", "fp32", 1): 2.0,
            ("image_encoder", "fp32", 2): 1.5,
            ("image_encoder", "int8", 1): 1.0,
            ("text_encoder", "fp32", 1): 1.02,
            ("text_encoder", "fp32", 2): 1.01,
            ("text_encoder", "int8", 1): 1.0,
        },
    )
    plan = plan_engines(bundle)
    assert plan.chosen_by == "tuned"
    assert [(c.record.precision, c.threads) for c in plan.chains["image_encoder"]] == [("int8", 1), ("fp32", 2)]
    assert (plan.first("text_encoder").record.precision, plan.first("text_encoder").threads) == ("fp32", 1)
    assert plan.first("caption_decode").record.precision == "fp32"  # not measured: as exported
    assert plan_engines(bundle, precision="fp32").first("image_encoder").threads == 2
    assert plan_engines(bundle, threads=1, precision="fp32").first("image_encoder").threads == 1
    assert plan_engines(bundle, threads=7).first("image_encoder").threads == 7
    assert plan_engines(bundle, tuned=False).chosen_by == "exported"


@pytest.mark.parametrize("damage", ["cut", "not json", "other format", "other device", "unknown engine", "gone"])
def test_a_profile_that_does_not_fit_is_none(golden_bundle: Callable[..., Bundle], damage: str) -> None:
    bundle = golden_bundle()
    made = _with_times(bundle, {("image_encoder", "int8", 1): 1.0})
    path = profile_path(bundle)
    assert load_profile(bundle) == made
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "not json":
        path.write_bytes(b"\xff\xfe\x00")
    elif damage == "gone":
        path.unlink()
    else:
        changed = {
            "other format": msgspec.structs.replace(made, format=99),
            "other device": msgspec.structs.replace(made, device=msgspec.structs.replace(made.device, cores=999)),
            "unknown engine": msgspec.structs.replace(
                made, measurements=(msgspec.structs.replace(made.measurements[0], engine="abacus"),)
            ),
        }[damage]
        path.write_bytes(msgspec.json.encode(changed))
    assert load_profile(bundle) is None
    assert plan_engines(bundle).chosen_by == "exported"


def test_a_profile_of_another_bundle_is_not_used(golden_bundle: Callable[..., Bundle], bundle_path: Path) -> None:
    _with_times(golden_bundle(), {("image_encoder", "int8", 1): 1.0})
    assert load_profile(load_bundle(bundle_path)) is None


def test_a_graph_that_is_wrong_here_is_never_run(golden_bundle: Callable[..., Bundle], bundle_path: Path) -> None:
    name = "graphs/onnx-int8/image_encoder.onnx"

    def prefer(manifest: Manifest) -> Manifest:
        graphs = (msgspec.structs.replace(g, preferred=True) for g in manifest.graphs)
        return msgspec.structs.replace(manifest, graphs=tuple(graphs))

    bundle = golden_bundle({name: _turned(bundle_path / name)}, prefer)
    assert plan_engines(bundle).first("image_encoder").record.path == name  # the faster one, by its record
    profile = tune(bundle, engines="onnxruntime", threads=1, limit_s=5)
    wrong = next(m for m in profile.measurements if m.path == name)
    assert (wrong.status, wrong.p50_ms) == ("wrong", None)
    assert wrong.figure is not None
    assert wrong.figure < 0.95
    assert profile.rejected == {(EngineSpec("onnxruntime"), name)}
    paths = [choice.record.path for choice in plan_engines(bundle).chains["image_encoder"]]
    assert paths == ["graphs/onnx-fp32/image_encoder.onnx"]


def test_a_graph_that_kills_the_child_is_left_out_and_the_rest_is_measured(
    golden_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(**fields: object) -> Limits:
        return Limits(cpu_s=4, wall_s=60.0)

    monkeypatch.setattr(tuner, "Limits", short)
    name = "graphs/onnx-int8/text_encoder.onnx"
    profile = tune(golden_bundle({name: _endless()}), engines="onnxruntime", threads=1, limit_s=1)
    statuses = {(m.role, m.precision): m.status for m in profile.measurements}
    assert statuses.pop(("text_encoder", "int8")) == "crashed"
    assert set(statuses.values()) <= {"measured", "not_tried"}
    assert {role for (role, _), status in statuses.items() if status == "measured"} == set(ROLES)


def test_a_provider_without_its_device_is_a_failure_of_that_candidate(golden_bundle: Callable[..., Bundle]) -> None:
    profile = tune(golden_bundle(), engines="onnxruntime:cuda,onnxruntime", threads=1, limit_s=1)
    cuda = [m for m in profile.measurements if m.engine == "onnxruntime:cuda"]
    assert {m.status for m in cuda} <= {"failed", "not_tried"}
    assert {m.role for m in profile.measurements if m.status == "measured"} == set(ROLES)


def test_a_bundle_without_golden_files_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BundleSchemaError, match="golden"):
        tune(load_bundle(bundle_path), engines="onnxruntime", threads=1)


def test_an_engine_without_a_graph_is_refused_with_what_there_is(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match=r"coreml.*graphs for onnxruntime"):
        tune(load_bundle(bundle_path), engines="coreml")


def test_a_child_that_dies_before_any_graph_is_a_crash(
    golden_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = golden_bundle()
    monkeypatch.setattr(tuner, "Limits", lambda **fields: Limits(memory_bytes=1, wall_s=60.0))
    with pytest.raises(BundleCrashed):
        tune(bundle, engines="onnxruntime", threads=1)
