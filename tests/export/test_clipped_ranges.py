"""ReLU6 in static int8: the range of a convolution is what is left of it behind the clip."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, fx, nn

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets import open_target
from pocketlens.export.targets.executorch_program import captured
from pocketlens.export.targets.executorch_static import quantize_pt2e
from pocketlens.export.targets.onnx_float import write_float
from pocketlens.export.targets.onnx_static import static_quantizer

SIDE = 16
CEILING = 6.0
WIDE = 60.0
"""How far a channel in front of the clip reaches: 8 bits over that leave 25 steps below the ceiling."""


class Clipped(nn.Module):
    """Two convolutions with a clip between them, as an image encoder begins."""

    def __init__(self, low: float = 0.0, high: float = CEILING) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, stride=4)
        self.clip = nn.Hardtanh(low, high)
        with torch.no_grad():
            self.first.weight[:4] *= WIDE

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32).permute(0, 3, 1, 2) * (1 / 127.5) + (-1.0)
        return self.second(self.clip(self.first(x))).flatten(1)


def graph_of(module: nn.Module) -> Graph:
    example = torch.from_numpy(_pixels(2, seed=9))
    with torch.no_grad():
        width = module(example).shape[1]
    return Graph(
        "image_encoder",
        module.eval(),
        (TensorSpec(name="pixels", dtype="uint8", shape=(-1, SIDE, SIDE, 3)),),
        (TensorSpec(name="embedding", dtype="float32", shape=(-1, width)),),
        (example,),
    )


def _pixels(count: int, *, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    return [{"pixels": row[None]} for row in _pixels(16, seed=1)]


def _expected(graph: Graph, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        out: NDArray[np.float32] = graph.module(torch.from_numpy(pixels)).numpy()
    return out


def _snr(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def _run_onnx(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    out: NDArray[np.float32] = session.run(["embedding"], {"pixels": pixels})[0]
    return out


def test_onnx_takes_the_range_behind_the_clip(feeds: list[Feed], tmp_path: Path) -> None:
    graph, pixels = graph_of(Clipped()), _pixels(8, seed=2)
    path = tmp_path / "int8.onnx"
    open_target("onnx").export(graph, {"int8": path}, feeds)
    model = onnx.load(path)
    assert "Clip" not in {node.op_type for node in model.graph.node}  # the ends of the range clip
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    (rounded,) = (node for node in model.graph.node if conv.output[0] in node.input)
    assert float(numpy_helper.to_array(constants[rounded.input[1]])) == pytest.approx(CEILING / 255, rel=1e-3)
    assert _snr(_expected(graph, pixels), _run_onnx(path, pixels)) > 30


@pytest.mark.parametrize(("low", "high"), [(1.0, 6.0), (-6.0, -1.0)])
def test_onnx_keeps_a_clip_whose_range_has_no_zero(low: float, high: float, feeds: list[Feed], tmp_path: Path) -> None:
    graph, pixels = graph_of(Clipped(low, high)), _pixels(8, seed=2)
    path = tmp_path / "int8.onnx"
    open_target("onnx").export(graph, {"int8": path}, feeds)
    assert "Clip" in {node.op_type for node in onnx.load(path).graph.node}
    assert _snr(_expected(graph, pixels), _run_onnx(path, pixels)) > 15


def test_a_clip_belongs_to_the_layer_before_it(feeds: list[Feed], tmp_path: Path) -> None:
    write_float(graph_of(Clipped()), tmp_path / "float.onnx")
    quantizer = static_quantizer("image_encoder", tmp_path / "float.onnx", feeds)
    assert [len(layer.nodes) for layer in quantizer.layers] == [2, 1]
    made = quantizer.quantized(quantizer.layers[:1])
    assert "Clip" in {node.op_type for node in made.graph.node}


def test_xnnpack_takes_the_range_behind_the_clip(feeds: list[Feed]) -> None:
    graph = graph_of(Clipped())
    converted = _converted(graph, feeds)
    clip = next(node for node in converted.graph.nodes if node.target is torch.ops.aten.hardtanh.default)
    assert clip.args[0].target is torch.ops.aten.conv2d.default  # nothing is rounded in front of it
    (rounded,) = clip.users
    assert float(rounded.args[1]) == pytest.approx(CEILING / 255, rel=1e-3)
    pixels = _pixels(1, seed=2)
    with torch.no_grad():
        found = converted(torch.from_numpy(pixels)).numpy()
    assert _snr(_expected(graph, pixels), found) > 30


def test_xnnpack_computes_the_clip_with_its_convolution(feeds: list[Feed], tmp_path: Path) -> None:
    graph, pixels = graph_of(Clipped()), _pixels(1, seed=2)
    path = tmp_path / "int8.pte"
    (delegation,) = open_target("executorch").export(graph, {"int8": path}, feeds).values()
    with quiet():
        from executorch.runtime import Runtime
    found = Runtime.get().load_program(path).load_method("forward").execute([torch.from_numpy(pixels)])[0]
    assert delegation.parts == 1
    assert _snr(_expected(graph, pixels), found.numpy()) > 30


def _converted(graph: Graph, feeds: list[Feed]) -> fx.GraphModule:
    with quiet(), torch.no_grad():
        module: Any = captured(graph.module, graph.example_row).module()
        return quantize_pt2e(module, graph, feeds)
