"""Bias correction: the mean output of a convolution with rounded weights is that of the float one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from pocketlens.distill.compression.quantizer import static_quantizer
from pocketlens.export.bias_correction import output_shift, rounding_error
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity import Settings, StaticQuantizer
from pocketlens.export.sensitivity.answers import run_graph
from pocketlens.export.targets.executorch_biases import correct_biases
from pocketlens.export.targets.executorch_program import captured

CHANNELS, SIDE = 8, 12
BRIGHT = 5.0
"""Mean of what goes in: far from zero, so that rounded weights err in one direction."""


@pytest.mark.parametrize(
    ("groups", "stride", "pads"),
    [(1, (1, 1), (0, 0, 0, 0)), (CHANNELS, (2, 2), (0, 0, 1, 1)), (2, (1, 2), (1, 1, 1, 1))],
)
def test_the_shift_is_the_mean_of_what_each_picture_shows(
    groups: int, stride: tuple[int, int], pads: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(6, CHANNELS, SIDE, SIDE, dtype=torch.float64) + BRIGHT
    weight = torch.randn(CHANNELS, CHANNELS // groups, 3, 3, dtype=torch.float64)
    error = rounding_error(weight, weight.abs().amax(dim=(1, 2, 3)) / 7, most=7)
    top, left, bottom, right = pads
    padded = nn.functional.pad(inputs, (left, right, top, bottom))
    apart = [nn.functional.conv2d(padded, w, stride=stride, groups=groups) for w in (weight + error, weight)]
    expected = (apart[0] - apart[1]).mean(dim=(0, 2, 3))
    found = output_shift(inputs.mean(dim=0), error, stride=stride, pads=pads, groups=groups)
    torch.testing.assert_close(found, expected)


def test_rounding_stays_within_half_a_step_and_the_largest_integer() -> None:
    weight = torch.tensor([[0.0, 0.26, -1.0, 3.0]])
    torch.testing.assert_close(
        rounding_error(weight, torch.tensor([0.5]), most=4), torch.tensor([[0.0, 0.24, 0.0, -1.0]])
    )


@pytest.fixture(scope="module")
def chain() -> onnx.ModelProto:
    """An edge filter on each channel, nearly blind to brightness, then a sum that makes its answer loud."""
    rng = np.random.default_rng(3)
    edges = rng.normal(size=(CHANNELS, 1, 3, 3))
    edges -= edges.mean(axis=(1, 2, 3), keepdims=True)
    tensors = {
        "edges": edges,
        "edges_bias": rng.normal(size=CHANNELS),
        "mixed": rng.normal(size=(4, CHANNELS, 1, 1)),
        "mixed_bias": np.zeros(4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "edges", "edges_bias"], ["p"], name="depthwise", group=CHANNELS),
        helper.make_node("Conv", ["p", "mixed", "mixed_bias"], ["y"], name="mix"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4, SIDE - 2, SIDE - 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _feeds(count: int, *, seed: int) -> list[Feed]:
    rng = np.random.default_rng(seed)
    shape = (1, CHANNELS, SIDE, SIDE)
    return [{"x": rng.normal(BRIGHT, 0.3, size=shape).astype(np.float32)} for _ in range(count)]


def test_onnx_graphs_have_the_mean_answers_of_the_float_graph(chain: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(chain, tmp_path / "chain.onnx")
    calibration, held_out = _feeds(8, seed=1), _feeds(8, seed=2)
    expected = run_graph(chain, held_out)["y"]

    def off(*, corrected: bool) -> NDArray[np.float32]:
        quantizer = StaticQuantizer(tmp_path / "chain.onnx", calibration, Settings(bias_correction=corrected))
        error: NDArray[np.float32] = run_graph(quantizer.quantized(), held_out)["y"] - expected
        return error

    plain, corrected = off(corrected=False), off(corrected=True)
    assert np.abs(corrected.mean(axis=(0, 2, 3))).max() < np.abs(plain.mean(axis=(0, 2, 3))).max() / 3
    assert np.square(corrected).mean() < np.square(plain).mean() / 2


def test_a_layer_in_float_keeps_its_bias(chain: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(chain, tmp_path / "chain.onnx")
    quantizer = StaticQuantizer(tmp_path / "chain.onnx", _feeds(4, seed=1), Settings(bias_correction=True))
    kept = [layer for layer in quantizer.layers if "depthwise" in layer.nodes]
    made = {t.name: numpy_helper.to_array(t) for t in quantizer.quantized(kept).graph.initializer}
    own = {t.name: numpy_helper.to_array(t) for t in chain.graph.initializer}
    np.testing.assert_array_equal(made["edges_bias"], own["edges_bias"])


class Edges(nn.Module):
    """Bright pixels and an edge filter on each channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.edges = nn.Conv2d(3, 3, 3, padding=1, stride=2, groups=3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.edges(self.bright(pixels)).mean(dim=(2, 3))

    def bright(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).permute(0, 3, 1, 2) * (1 / 127.5) + 4.0


def test_prepared_executorch_graphs_are_corrected_and_the_student_keeps_its_biases() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    module = Edges().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 1, SIDE, SIDE, 3), dtype=np.uint8))
    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(captured(module, (rows[0],)).module(), static_quantizer("image_encoder", ["embedding"]))
        for row in rows:
            prepared(row)
        correct_biases(prepared, [(row,) for row in rows])
        scale = module.edges.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        rounded = (module.edges.weight / scale).round() * scale
        bright = torch.cat([module.bright(row) for row in rows])
        apart = [functional.conv2d(bright, w, padding=1, stride=2, groups=3) for w in (rounded, module.edges.weight)]
        shift = (apart[0] - apart[1]).mean(dim=(0, 2, 3))
        answers = torch.cat([prepared(row) - module(row) for row in rows])
    assert shift.abs().min() > 1e-3
    torch.testing.assert_close(answers.mean(dim=0), -shift, atol=1e-5, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
