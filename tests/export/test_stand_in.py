"""The eager student in the place of a graph, and caches in the form that CoreML has them in."""

import numpy as np
import torch
from torch import Tensor, nn

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.graphs import Graph
from pocketlens.export.stand_in import eager_answers
from pocketlens.export.targets.coreml_forms import captured

LAYERS, HEADS, POSITIONS, WIDTH, SEEN = 3, 2, 5, 4, 2
SHAPE = (-1, LAYERS, 2, HEADS, POSITIONS, WIDTH)


class Step(nn.Module):
    """Reads a cache as BLIP's decode step does: the picture's positions apart from the text's, then side by side."""

    def forward(self, position: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        seen, text = cache[..., :SEEN, :], cache[..., SEEN:, :]
        grown, total = [], torch.zeros(len(cache), HEADS)
        for layer in range(LAYERS):
            keys, values = text[:, layer, 0] * 2, text[:, layer, 1] + position[:, None, None, None]
            total = total + (keys * values).sum(dim=(2, 3)) + (seen[:, layer, 0] * seen[:, layer, 1]).sum(dim=(2, 3))
            grown.append(torch.stack([keys, values], dim=1))
        return total, torch.cat([seen, torch.stack(grown, dim=1)], dim=4)


def _graph() -> Graph:
    inputs = (
        TensorSpec(name="position", dtype="float32", shape=(-1,)),
        TensorSpec(name="cache", dtype="float32", shape=SHAPE),
    )
    outputs = (
        TensorSpec(name="logits", dtype="float32", shape=(-1, HEADS)),
        TensorSpec(name="cache", dtype="float32", shape=SHAPE),
    )
    return Graph("caption_decode", Step().eval(), inputs, outputs, (torch.ones(2), torch.zeros(2, *SHAPE[1:])))


def _cache() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(1, *SHAPE[1:])).astype(np.float32)


def test_a_stand_in_takes_a_cache_whose_layers_and_parts_are_one_axis() -> None:
    answer, cache, position = eager_answers({"caption_decode": _graph()}), _cache(), np.ones(1, np.float32)
    expected = answer("caption_decode", {"position": position, "cache": cache})
    found = answer("caption_decode", {"position": position, "cache": cache.reshape(1, -1, *SHAPE[3:])})
    assert found["cache"].shape == cache.shape
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_captured_form_of_a_cut_and_joined_cache_answers_like_the_module() -> None:
    graph, cache = _graph(), torch.from_numpy(_cache())
    form = captured(graph)
    assert form.example[1].dim() == 5
    logits, grown = form.module(torch.ones(1), cache.flatten(1, 2))
    expected_logits, expected = graph.module(torch.ones(1), cache)
    torch.testing.assert_close(logits, expected_logits)
    assert torch.equal(grown, expected.flatten(1, 2))
