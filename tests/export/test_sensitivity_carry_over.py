"""The choice of float layers, made on the ONNX graph, reaches ExecuTorch's quantizer."""

from dataclasses import replace

import pytest
import torch

from pocketlens.core.errors import ExportError
from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.sensitivity import Settings, StaticQuantizer
from pocketlens.export.sensitivity.carry_over import keep_quantized
from pocketlens.export.targets.onnx import OnnxTarget

_PRODUCTS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


@pytest.fixture(scope="module")
def quantizer(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], tmp_path_factory: pytest.TempPathFactory
) -> StaticQuantizer:
    path = tmp_path_factory.mktemp("carry") / "tower.onnx"
    OnnxTarget().export(graphs["image_encoder"], {"fp32": path}, [])
    return StaticQuantizer(path, feeds["image_encoder"], Settings())


@pytest.fixture
def module(graphs: dict[str, Graph]) -> torch.fx.GraphModule:
    graph = graphs["image_encoder"]
    with quiet(), torch.no_grad():
        folded = fold_batch_norm(torch.export.export(graph.module, graph.example_row).module())
        exported: torch.fx.GraphModule = torch.export.export(folded, graph.example_row).module()
    return exported


def test_the_filter_refuses_just_the_chosen_layers(module: torch.fx.GraphModule, quantizer: StaticQuantizer) -> None:
    weighted = [layer for layer in quantizer.layers if layer.weights]
    chosen = [weighted[1], weighted[-1]]
    keeps = keep_quantized(module, quantizer.layers, chosen)
    refused = [node for node in module.graph.nodes if not keeps(node)]
    assert len(refused) == 2
    assert refused[0] is [node for node in module.graph.nodes if node.target is _PRODUCTS[0]][1]


def test_the_quantizer_leaves_them_in_float(
    module: torch.fx.GraphModule, quantizer: StaticQuantizer, feeds: dict[str, list[Feed]]
) -> None:
    with quiet():  # the packages use what Python has deprecated
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    weighted = [layer for layer in quantizer.layers if layer.weights]
    backend = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    backend.set_filter_function(keep_quantized(module, quantizer.layers, weighted[2:4]))
    with quiet():
        prepared = prepare_pt2e(module, backend)
        for feed in feeds["image_encoder"][:2]:
            prepared(torch.from_numpy(feed["pixels"].copy()))
        converted = convert_pt2e(prepared)
    products = [node for node in converted.graph.nodes if node.target in _PRODUCTS]
    plain = [index for index, node in enumerate(products) if node.args[1].op == "get_attr"]
    assert len(products) == len(weighted)
    assert plain == [2, 3]


def test_graphs_that_do_not_belong_together_are_refused(
    module: torch.fx.GraphModule, quantizer: StaticQuantizer
) -> None:
    other = [replace(layer, shape=(7, *layer.shape[1:])) if layer.weights else layer for layer in quantizer.layers]
    with pytest.raises(ExportError, match="in its order"):
        keep_quantized(module, other, [])
    with pytest.raises(ExportError, match="in its order"):
        keep_quantized(module, [layer for layer in quantizer.layers if layer.name != "projection"], [])
