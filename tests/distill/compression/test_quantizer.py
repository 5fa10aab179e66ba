"""Which operators of an image tower are rounded: all up to its last matrix product and the activation fused with it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pocketlens.distill.compression.quantizer import static_quantizer
from pocketlens.distill.quiet import quiet_tracing
from pocketlens.distill.students.blocks import RMSNorm, unit_norm

WIDTH = 24


class _Tower(nn.Module):
    """Two results of one map, each with a norm behind its last product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.adapter = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm = RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.stem(x))
        tokens = self.adapter(features).flatten(2).transpose(1, 2)
        return unit_norm(self.projection(features.mean(dim=(2, 3)))), self.norm(tokens)


class _Map(nn.Module):
    """A tower that ends with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.stem(x))


def _converted(module: nn.Module, outputs: Sequence[str], *, trained: bool) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 3, 6, 6, generator=generator) for _ in range(8)]
    with quiet_tracing(), torch.no_grad():
        graph: Any = torch.export.export(module.eval(), (rows[0],)).module()
        prepare = prepare_qat_pt2e if trained else prepare_pt2e
        prepared = prepare(graph, static_quantizer("image_encoder", outputs, trained=trained))
        for row in rows:
            prepared(row)
        converted: fx.GraphModule = convert_pt2e(prepared)
    return converted


def _rounded(graph: fx.GraphModule) -> set[str]:
    """Return the operators whose results are rounded to 8 bits."""
    rounds = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return {str(node.args[0].target) for node in graph.graph.nodes if node.target is rounds}


@pytest.mark.parametrize("trained", [False, True])
def test_norms_of_the_results_stay_in_float(trained: bool) -> None:
    torch.manual_seed(0)
    tower = _Tower()
    graph = _converted(tower, ("embedding", "visual_tokens"), trained=trained)
    found = _rounded(graph)
    assert {"aten.relu.default", "aten.linear.default", "aten.conv2d.default", "aten.mean.dim"} <= found
    assert not {name for name in found if name.startswith(("aten.mul", "aten.rsqrt", "aten.sum", "aten.add"))}
    row = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding, tokens = graph(row)
        expected = tower(row)[0]
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.cosine_similarity(embedding, expected).item() > 0.99
    assert torch.allclose(tokens.square().mean(dim=2), torch.ones(1, 36), atol=1e-3)


def test_an_activation_at_the_end_is_rounded_with_its_convolution() -> None:
    torch.manual_seed(0)
    graph = _converted(_Map(), ("embedding",), trained=False)
    assert "aten.relu.default" in _rounded(graph)
    assert "aten.conv2d.default" not in _rounded(graph)
