"""Mixed precision by sensitivity, on a tiny real image tower and rendered scenes."""

import math
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from pocketlens.core.bundle import Latency, Parity
from pocketlens.core.errors import DataError, EngineError, ExportError, ParityGateFailed, RecipeError
from pocketlens.export.graphs import Graph
from pocketlens.export.parity import cosines
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity import (
    Frontier,
    Gate,
    Layer,
    Point,
    Sensitivity,
    Settings,
    StaticQuantizer,
    compare_settings,
    equalise,
    fewest_float_layers,
    find_layers,
    measure_frontier,
    measure_layers,
    plot_frontier,
)
from pocketlens.export.sensitivity.answers import Runner, run_graph, snr_db
from pocketlens.export.sensitivity.comparison import trials_table
from pocketlens.export.sensitivity.layers import RULES
from pocketlens.export.targets.onnx import OnnxTarget

_LOUD = 3000.0
_IDLE_DB = 90.0


@pytest.fixture(scope="module")
def calibration(feeds: dict[str, list[Feed]]) -> list[Feed]:
    return feeds["image_encoder"]


@pytest.fixture(scope="module")
def held_out(reference: object) -> list[Feed]:
    return [{"pixels": row[None]} for row in reference.pixels]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def tower(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "tower.onnx"
    OnnxTarget().export(graphs["image_encoder"], {"fp32": path}, [])
    return path


@pytest.fixture(scope="module")
def quantizer(tower: Path, calibration: list[Feed]) -> StaticQuantizer:
    return StaticQuantizer(tower, calibration, Settings())


@pytest.fixture(scope="module")
def planted(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The tower with one loud channel between two convolutions, and the nodes of these two.

    The first makes one channel louder by a factor, the second takes it back: in float the answer is
    the same, in int8 the other channels fall into one step.
    """
    model = onnx.load(tower)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    for second in graph.node:
        first = maker.get(second.input[0]) if second.op_type == "Conv" else None
        first = maker.get(first.input[0]) if first is not None and first.op_type == "Relu" else None
        if first is None or first.op_type != "Conv":
            continue
        for name, axis, factor in (
            (first.input[1], 0, _LOUD),
            (first.input[2], 0, _LOUD),
            (second.input[1], 1, 1 / _LOUD),
        ):
            value = numpy_helper.to_array(constants[name]).copy()
            np.moveaxis(value, axis, 0)[0] *= factor
            constants[name].CopyFrom(numpy_helper.from_array(value, name))
        path = tmp_path_factory.mktemp("planted") / "planted.onnx"
        onnx.save(model, path)
        return path, {first.name, second.name}
    raise AssertionError("no convolution, ReLU, convolution in the tower")


@pytest.fixture(scope="module")
def ruined(planted: tuple[Path, set[str]], calibration: list[Feed]) -> StaticQuantizer:
    return StaticQuantizer(planted[0], calibration, Settings())


@pytest.fixture(scope="module")
def sensitivities(ruined: StaticQuantizer, calibration: list[Feed]) -> tuple[Sensitivity, ...]:
    return measure_layers(ruined, calibration[:4])


def _embedding(model: onnx.ModelProto, feeds: list[Feed]) -> np.ndarray:
    return run_graph(model, feeds)["embedding"]


# layers


def test_a_relu_belongs_to_the_convolution_before_it(quantizer: StaticQuantizer) -> None:
    operators = {node.name: node.op_type for node in quantizer.model.graph.node}
    pairs = [[operators[name] for name in layer.nodes] for layer in quantizer.layers]
    assert ["Conv", "Relu"] in pairs
    names = [name for layer in quantizer.layers for name in layer.nodes]
    assert len(names) == len(set(names))
    expected = [name for name, operator in operators.items() if operator in ("Conv", "Add", "Relu", "Gemm")]
    assert set(names) == set(expected)


def test_layers_carry_the_names_of_their_modules(quantizer: StaticQuantizer) -> None:
    names = [layer.name for layer in quantizer.layers]
    assert any(name.startswith("backbone.") and name.endswith("conv1") for name in names)
    assert "projection" in names


def test_rules_choose_what_they_are_called_after(quantizer: StaticQuantizer) -> None:
    weighted = [layer for layer in quantizer.layers if layer.weights]
    assert RULES["first and last"](quantizer.layers) == (weighted[0], weighted[-1])
    assert {layer.operator for layer in RULES["additions"](quantizer.layers)} == {"Add"}


def test_nodes_that_stay_in_float_are_no_layers(quantizer: StaticQuantizer) -> None:
    spared = quantizer.layers[0].nodes[0]
    layers = find_layers(quantizer.model, Settings(float_nodes=frozenset({spared})))
    assert spared not in {name for layer in layers for name in layer.nodes}


def test_a_graph_without_quantizable_operators_is_refused(quantizer: StaticQuantizer) -> None:
    with pytest.raises(ExportError, match="LSTM to quantize"):
        find_layers(quantizer.model, Settings(operators=("LSTM",)))


def test_nameless_nodes_are_refused(quantizer: StaticQuantizer) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(quantizer.model)
    model.graph.node[3].name = ""
    with pytest.raises(ExportError, match="a name of its own"):
        find_layers(model, Settings())


# the quantizer


def test_it_makes_the_graph_that_quantize_static_makes(
    tower: Path, quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed], tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from pocketlens.export.quiet import quiet
    from pocketlens.export.targets.onnx_static import CalibrationFeeds

    kept = quantizer.layers[2]
    with quiet():
        quantize_static(
            tower,
            tmp_path / "int8.onnx",
            CalibrationFeeds(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(Settings().operators),
            nodes_to_exclude=list(kept.nodes),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    theirs = _embedding(onnx.load(tmp_path / "int8.onnx"), held_out)
    np.testing.assert_array_equal(_embedding(quantizer.quantized([kept]), held_out), theirs)


def test_all_layers_in_float_give_the_float_graph(quantizer: StaticQuantizer, held_out: list[Feed]) -> None:
    model = quantizer.quantized(quantizer.layers)
    np.testing.assert_array_equal(_embedding(model, held_out), _embedding(quantizer.model, held_out))


def test_one_layer_alone_has_the_only_int8_weight(quantizer: StaticQuantizer) -> None:
    layer = next(layer for layer in quantizer.layers if layer.weights)
    model = quantizer.quantized_only([layer])
    coded = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    assert [tuple(tensor.dims) for tensor in coded if len(tensor.dims) > 1] == [layer.shape]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(symmetric=True),
        Settings(per_channel=False),
        Settings(weight_bits=8),
        Settings(calibration="percentile", percentile=99.9),
    ],
)
def test_every_way_of_quantizing_stays_near_and_differs_from_the_default(
    settings: Settings, tower: Path, quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    found = _embedding(StaticQuantizer(tower, calibration, settings).quantized(), held_out)
    assert cosines(found, _embedding(quantizer.model, held_out)).mean() > 0.9
    assert not np.array_equal(found, _embedding(quantizer.quantized(), held_out))


def test_wide_activations_lose_less_from_the_same_small_weights(
    tower: Path, quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    wide = StaticQuantizer(tower, calibration, Settings(activation_bits=16)).quantized()
    expected, narrow = _embedding(quantizer.model, held_out), quantizer.quantized()
    assert cosines(_embedding(wide, held_out), expected).mean() > cosines(_embedding(narrow, held_out), expected).mean()
    codes = [onnx.TensorProto.UINT8, onnx.TensorProto.UINT16]
    zeros = [{t.data_type for t in model.graph.initializer if t.data_type in codes} for model in (narrow, wide)]
    assert zeros == [{code} for code in codes]
    assert wide.ByteSize() < 1.05 * narrow.ByteSize()


def test_entropy_calibration_stays_near(
    tower: Path, quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    found = _embedding(StaticQuantizer(tower, calibration, Settings(calibration="entropy")).quantized(), held_out)
    assert cosines(found, _embedding(quantizer.model, held_out)).mean() > 0.9


def test_calibration_without_inputs_is_refused(tower: Path) -> None:
    with pytest.raises(DataError, match="at least one input"):
        StaticQuantizer(tower, [], Settings())


def test_a_graph_that_cannot_be_loaded_is_a_typed_error() -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="n")
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "odd", value[:1], value[1:]))
    with pytest.raises(EngineError, match="odd"):
        Runner(model)


@pytest.mark.parametrize("options", [{"operators": ()}, {"percentile": 100.1}, {"percentile": 50.0}])
def test_settings_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Settings(**options)  # type: ignore[arg-type]


# signal-to-noise ratios


def test_snr_is_the_ratio_of_powers_in_decibel() -> None:
    signal = np.array([3.0, 4.0], np.float32)
    assert snr_db(signal, signal + np.array([0.5, 0.0], np.float32)) == pytest.approx(20.0)
    assert snr_db(signal, signal) == math.inf
    assert snr_db(signal, np.array([np.nan, 4.0], np.float32)) == -math.inf
    assert snr_db(np.zeros(2), signal) == -math.inf


def test_the_planted_layers_are_the_worst(
    planted: tuple[Path, set[str]], sensitivities: tuple[Sensitivity, ...]
) -> None:
    worst = sorted(sensitivities, key=lambda one: one.alone_db)[:2]
    assert {one.layer.nodes[0] for one in worst} == planted[1]


def test_the_error_that_has_piled_up_is_larger_behind_the_planted_layer(
    planted: tuple[Path, set[str]], sensitivities: tuple[Sensitivity, ...]
) -> None:
    position = max(index for index, one in enumerate(sensitivities) if planted[1] & set(one.layer.nodes))
    here = sensitivities[position].here_db
    assert here is not None
    before = [one.here_db for one in sensitivities[: position - 1] if one.here_db is not None]
    assert here < min(before)


def test_a_relu_that_the_quantizer_took_out_is_no_error(quantizer: StaticQuantizer, calibration: list[Feed]) -> None:
    found = measure_layers(quantizer, calibration[:2])
    ratios = [one.here_db for one in found if len(one.layer.nodes) == 2]
    assert ratios
    assert all(ratio is not None and ratio > 5 for ratio in ratios)


# the search


def test_it_keeps_the_planted_layers_and_passes_on_unseen_pictures(
    planted: tuple[Path, set[str]],
    ruined: StaticQuantizer,
    sensitivities: tuple[Sensitivity, ...],
    calibration: list[Feed],
    held_out: list[Feed],
) -> None:
    gate = Gate(cosine=0.98)
    found = fewest_float_layers(ruined, search=calibration, held_out=held_out, gate=gate, sensitivities=sensitivities)
    assert found.tried[0] < 0.98 <= found.held_out.mean
    assert planted[1] <= set(found.float_nodes)
    assert len(found.float_layers) < len(ruined.layers) / 2
    model = ruined.quantized(found.float_layers)
    expected, seen = run_graph(ruined.model, held_out), run_graph(model, held_out)
    means = [cosines(seen[name], expected[name]).mean() for name in expected]
    assert found.held_out.mean == pytest.approx(min(means))


def test_no_layer_of_the_result_can_return_to_int8(
    ruined: StaticQuantizer,
    sensitivities: tuple[Sensitivity, ...],
    calibration: list[Feed],
    held_out: list[Feed],
) -> None:
    gate = Gate(cosine=0.98, outputs=("embedding",))
    found = fewest_float_layers(ruined, search=calibration, held_out=held_out, gate=gate, sensitivities=sensitivities)
    expected = _embedding(ruined.model, calibration)
    for spared in found.float_layers:
        rest = [layer for layer in found.float_layers if layer is not spared]
        # The search may have tightened its limit, which makes the result no smaller.
        assert cosines(_embedding(ruined.quantized(rest), calibration), expected).mean() < found.search.mean


def test_a_graph_that_passes_in_int8_keeps_nothing(
    quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    found = fewest_float_layers(quantizer, search=calibration, held_out=held_out, gate=Gate(cosine=0.5))
    assert found.float_layers == found.float_nodes == ()
    assert [one.layer for one in found.sensitivities] == list(quantizer.layers)


def test_a_gate_out_of_reach_names_the_worst_layer(
    planted: tuple[Path, set[str]],
    sensitivities: tuple[Sensitivity, ...],
    calibration: list[Feed],
    held_out: list[Feed],
) -> None:
    # timm starts residual branches at zero: their last convolutions cost nothing in int8, at any gate.
    idle = {one.layer for one in sensitivities if one.alone_db > _IDLE_DB}
    settings = Settings(float_nodes=frozenset(name for layer in idle for name in layer.nodes))
    live = StaticQuantizer(planted[0], calibration, settings)
    known = [one for one in sensitivities if one.layer not in idle]
    gate = Gate(cosine=1 - 1e-12, statistic="minimum")
    with pytest.raises(ParityGateFailed) as caught:
        fewest_float_layers(live, search=calibration, held_out=held_out, gate=gate, sensitivities=known)
    worst = min(sensitivities, key=lambda one: one.alone_db).layer
    assert f"the worst layer is {worst.name}" in caught.value.found
    assert planted[1] & set(worst.nodes)


@pytest.mark.parametrize("kind", ["repeated", "no search", "nothing held out"])
def test_inputs_that_prove_nothing_are_refused(
    kind: str, quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    search, unseen = {
        "repeated": (calibration, [*held_out, dict(calibration[1])]),
        "no search": ([], held_out),
        "nothing held out": (calibration, []),
    }[kind]
    with pytest.raises(DataError):
        fewest_float_layers(quantizer, search=search, held_out=unseen, gate=Gate())


def test_a_gate_on_an_unknown_output_is_refused(
    quantizer: StaticQuantizer, calibration: list[Feed], held_out: list[Feed]
) -> None:
    with pytest.raises(RecipeError, match="embedding, visual_tokens"):
        fewest_float_layers(quantizer, search=calibration, held_out=held_out, gate=Gate(outputs=("logits",)))


def test_sensitivities_of_another_graph_are_refused(
    quantizer: StaticQuantizer,
    sensitivities: tuple[Sensitivity, ...],
    calibration: list[Feed],
    held_out: list[Feed],
) -> None:
    with pytest.raises(DataError, match="sensitivities"):
        fewest_float_layers(
            quantizer, search=calibration, held_out=held_out, gate=Gate(), sensitivities=sensitivities[1:]
        )


@pytest.mark.parametrize("limit", [0.0, 1.0, math.nan])
def test_a_limit_that_is_no_limit_is_refused(limit: float) -> None:
    with pytest.raises(RecipeError):
        Gate(cosine=limit)


# equalisation


def test_equalisation_changes_no_float_answer_and_heals_the_planted_channel(
    planted: tuple[Path, set[str]],
    ruined: StaticQuantizer,
    calibration: list[Feed],
    held_out: list[Feed],
    tmp_path: Path,
) -> None:
    equal, pairs = equalise(onnx.load(planted[0]))
    assert pairs >= 1
    onnx.save(equal, tmp_path / "equal.onnx")
    healed = StaticQuantizer(tmp_path / "equal.onnx", calibration, Settings())
    expected = _embedding(ruined.model, held_out)
    np.testing.assert_allclose(_embedding(healed.model, held_out), expected, atol=1e-5)
    before = snr_db(expected, _embedding(ruined.quantized(), held_out))
    assert snr_db(expected, _embedding(healed.quantized(), held_out)) > before + 6


def test_equalisation_of_depthwise_convolutions_changes_no_float_answer() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(size=(6, 3, 1, 1)) * np.geomspace(0.01, 10, 6)[:, None, None, None],
        "a_bias": rng.normal(size=6),
        "b": rng.normal(size=(6, 1, 3, 3)),
        "b_bias": rng.normal(size=6),
        "c": rng.normal(size=(4, 6, 1, 1)),
        "c_bias": rng.normal(size=4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a", "a_bias"], ["p"], name="first"),
        helper.make_node("Relu", ["p"], ["q"], name="relu"),
        helper.make_node("Conv", ["q", "b", "b_bias"], ["r"], name="depthwise", group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["r", "c", "c_bias"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    equal, pairs = equalise(model)
    assert pairs == 2
    feed = [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}]
    np.testing.assert_allclose(run_graph(equal, feed)["y"], run_graph(model, feed)["y"], rtol=1e-4, atol=1e-4)
    ranges = [np.abs(numpy_helper.to_array(tensor)).max(axis=(1, 2, 3)) for tensor in equal.graph.initializer[:3:2]]
    np.testing.assert_allclose(ranges[0], ranges[1], rtol=0.02)  # equal on both sides of each channel


# comparison, frontier, plot


def test_ways_of_quantizing_are_compared_each_with_its_own_float_graph(
    tower: Path, planted: tuple[Path, set[str]], calibration: list[Feed], held_out: list[Feed]
) -> None:
    ways = {"plain": (tower, Settings()), "loud channel": (planted[0], Settings())}
    trials = compare_settings(ways, calibration=calibration, held_out=held_out, gate=Gate())
    assert [trial.label for trial in trials] == list(ways)
    assert trials[0].snr_db > trials[1].snr_db + 6
    assert trials_table(trials).count("\n") == 4


@pytest.fixture(scope="module")
def result(ruined: StaticQuantizer, sensitivities: tuple[Sensitivity, ...], held_out: list[Feed]) -> Frontier:
    chosen = [one.layer for one in sorted(sensitivities, key=lambda one: one.alone_db)[:2]]
    return measure_frontier(
        "tower",
        ruined,
        sensitivities=sensitivities,
        chosen=chosen,
        held_out=held_out,
        gate=Gate(cosine=0.98),
        sets={"first and last": RULES["first and last"](ruined.layers)},
        runs=5,
    )


def test_the_frontier_goes_from_all_int8_to_all_float(result: Frontier, ruined: StaticQuantizer) -> None:
    counts = [point.float_layers for point in result.points]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, len(ruined.layers))
    plain, full = result.points[0], result.points[-1]
    assert plain.size_bytes < full.size_bytes
    assert plain.parity.mean < full.parity.mean == pytest.approx(1.0)
    assert full.snr_db is None
    assert full.float_weights == pytest.approx(1.0)
    assert {point.label for point in result.points} >= {"nothing", "1 most sensitive", "chosen", "everything"}


def test_the_table_marks_the_choice_and_names_the_worst_layers(
    result: Frontier, sensitivities: tuple[Sensitivity, ...]
) -> None:
    table = result.markdown(worst=3)
    assert "| **chosen** | 2 |" in table
    for one in sorted(sensitivities, key=lambda one: one.alone_db)[:3]:
        assert f"| {one.layer.name} | {one.layer.operator} |" in table


def test_the_data_is_json_and_comes_back(result: Frontier, tmp_path: Path) -> None:
    result.write(tmp_path / "frontier.json")
    again = msgspec.json.decode((tmp_path / "frontier.json").read_bytes(), type=Frontier)
    assert again.points == result.points
    assert sum(row.kept_in_float for row in again.layers) == 2


def test_the_plot_is_a_picture_with_something_on_it(result: Frontier, tmp_path: Path) -> None:
    plot_frontier(result, tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert colours is not None
    # matplotlib's tab:red (the choice) and tab:blue (the others)
    assert {(214, 39, 40), (31, 119, 180)} <= {colour for _, colour in colours}


def test_a_point_that_another_beats_in_all_three_is_not_among_the_best() -> None:
    def point(label: str, cosine: float, size: int, ms: float) -> Point:
        return Point(
            label=label,
            float_layers=0,
            float_weights=0.0,
            parity=Parity(metric="cosine", minimum=cosine, p1=cosine, mean=cosine, samples=1),
            snr_db=None,
            size_bytes=size,
            latency=Latency(p50_ms=ms, p90_ms=ms, runs=1, threads=1, machine="test"),
        )

    points = (point("good", 0.99, 10, 1.0), point("beaten", 0.98, 11, 1.0), point("small", 0.5, 5, 2.0))
    result = Frontier(graph="g", gate="", limit=0.9, chosen=None, points=points, layers=())
    assert [one.label for one in result.best()] == ["good", "small"]


def test_layers_are_values(quantizer: StaticQuantizer) -> None:
    assert find_layers(quantizer.model, Settings()) == quantizer.layers
    assert isinstance(quantizer.layers[0], Layer)
