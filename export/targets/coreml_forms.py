"""A student's graph in the forms that CoreML can hold: no sixth axis, a picture as input, the cache as state."""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, fx, nn

from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph

__all__ = ["MAX_RANK", "Form", "captured", "plain"]

MAX_RANK: Final = 5
"""CoreML's arrays have at most this many axes."""

_SELECT: Final = torch.ops.aten.select.int
_SLICE: Final = torch.ops.aten.slice.Tensor
_STACK: Final = torch.ops.aten.stack.default
_CAT: Final = torch.ops.aten.cat.default


@dataclass(frozen=True)
class Form:
    """A module that coremltools is to convert, with an example of its inputs.

    Attributes:
        picture: the name of the input that is a picture, if one is.
        state: the name of the module's buffer that becomes a state, if one does.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    picture: str | None = None
    state: str | None = None

    def with_picture(self) -> "Form":
        """Return an image encoder that takes `pixels (1, 3, H, W)`, which is how CoreML lays pictures out."""
        pixels = self.example[0].permute(0, 3, 1, 2).contiguous()
        return replace(self, module=_Picture(self.module), example=(pixels,), picture="pixels")

    def with_state(self) -> "Form":
        """Return a decode step that keeps its cache, the last input and last output, in a buffer."""
        module = _Stateful(self.module, torch.zeros_like(self.example[-1]))
        return replace(self, module=module, example=self.example[:-1], state="cache")


def captured(graph: Graph) -> Form:
    """Return `graph` at batch 1, with float32 pixels, caches of five axes and norms folded away."""
    example = tuple(tensor.to(torch.float32) if tensor.dtype == torch.uint8 else tensor for tensor in graph.example_row)
    module = torch.export.export(graph.module, example).module(check_guards=False)
    return Form(fold_batch_norm(_flatten_cache(module)), tuple(plain(tensor) for tensor in example))


def plain(tensor: Tensor) -> Tensor:
    """Return an input of a `Graph` as its captured form takes it: no bytes, at most five axes."""
    tensor = tensor.to(torch.float32) if tensor.dtype == torch.uint8 else tensor
    return tensor.flatten(1, 2) if tensor.dim() > MAX_RANK else tensor


class _Picture(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self.encoder(pixels.permute(0, 2, 3, 1))
        return result


class _Stateful(nn.Module):
    cache: Tensor

    def __init__(self, step: nn.Module, cache: Tensor) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("cache", cache.to(torch.float16))  # CoreML's state has no other type

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        logits, cache = self.step(token, position, self.cache.to(torch.float32))
        self.cache.copy_(cache.to(torch.float16))
        result: Tensor = logits
        return result


def _flatten_cache(module: fx.GraphModule) -> fx.GraphModule:
    """Rewrite caches `(B, L, 2, H, S, K)` to `(B, 2 * L, H, S, K)`: CoreML knows no sixth axis.

    Stacking layers `(B, 2, ...)` along axis 1 is, flattened, concatenating them; reading layer `l`, part `p` is reading
    row `2 * l + p`; positions are cut off and joined one axis earlier.
    """
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() <= MAX_RANK:
            continue
        if node.target is _STACK:
            node.target = _CAT
        elif node.target in (_CAT, _SLICE):
            axis = node.args[1] if len(node.args) > 1 else 0
            node.update_arg(1, axis % value.dim() - (axis % value.dim() > 2))
        for layer in [user for user in node.users if user.target is _SELECT]:
            for part in [user for user in layer.users if user.target is _SELECT]:
                with module.graph.inserting_before(part):
                    row = module.graph.call_function(_SELECT, (node, 1, 2 * layer.args[2] + part.args[2]))
                part.replace_all_uses_with(row)
                module.graph.erase_node(part)
    module.graph.eliminate_dead_code()
    # A new module, because the exported one carries a hook that checks its inputs' old shapes.
    return fx.GraphModule(module, module.graph)
