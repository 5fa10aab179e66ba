"""Takes whole channels and hidden units out of a student, the least important ones first.

What belongs together goes together: a channel of a convolution with its batch norm, the depthwise convolution behind it
and the weights of all that read it (dependency graph of Fang et al. 2023, from the library torch-pruning). The
width of the feature map stays, for heads and teachers' projections are made for it; so do the widths of the residual
streams of text tower and captioner, whose blocks lose hidden units only.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from pocketlens.core.errors import DataError, RecipeError
from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.student import Student
from pocketlens.distill.students.widths import widths_of

__all__ = ["MULTIPLE", "Importance", "cut"]

MULTIPLE: Final = 8
"""Widths that are left are multiples of this: kernels of XNNPACK and of ONNX Runtime work on eights."""

Importance = Literal["taylor", "magnitude"]

_LEAST: Final = 4  # no layer keeps less than this part of its width, or one that ranks low as a whole would vanish


class _Group(NamedTuple):
    """Channels that can only go together.

    Attributes:
        graph: the dependency graph that they are in.
        layer: the first layer that makes them.
        remove: takes outputs of that layer away.
        scores: `(C,)`, how important each is.
    """

    graph: Any
    layer: nn.Module
    remove: Callable[..., Any]
    scores: Tensor


def cut(student: Student, *, channels: float, units: float, importance: Importance) -> Student:
    """Return `student` less the least important channels of its backbone and hidden units of its transformer blocks.

    Each share is taken over all layers together, so some lose more and some nothing. What is left of a layer is a
    multiple of 8 and at least a quarter of it; so the share that goes is not exactly the one asked for.

    Args:
        student: is not changed. `taylor` needs its weights' `grad`.
        channels: share of the backbone's channels to take away, less than 1; those of its output are not counted.
        units: likewise, of the hidden units of text tower and captioner.
        importance: `magnitude`: squares of the weights of a channel, over the layer's mean (Li et al. 2017; Fang et
            al. 2023). `taylor`: how much the loss would change to first order, the sum of |weight x gradient|
            (Molchanov et al. 2019).

    Returns:
        The narrower student, in eval mode; `config.pruned` says how narrow.

    Raises:
        RecipeError: the backbone cannot be cut.
    """
    try:
        with torch.enable_grad():  # tracing follows gradients
            model = _copied(student)
            _take(_channel_groups(model, importance) if channels else [], channels)
            _take(_unit_groups(model, importance) if units else [], units)
        return _rebuilt(model)
    # What tracing makes of an unknown kind of backbone depends on the kind.
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, DataError) as error:
        raise RecipeError(
            "pruning.channels",
            expected="a backbone of convolutions and batch norms",
            found=f"{student.config.backbone}: {type(error).__name__}: {str(error)[:200]}",
            remedy="Set pruning.channels to 0, or choose another backbone.",
        ) from error


def _copied(student: Student) -> Student:
    """Return a copy with the gradients, which a copy of a parameter leaves behind."""
    model = copy.deepcopy(student).eval()
    for own, given in zip(model.parameters(), student.parameters(), strict=True):
        own.requires_grad_()
        own.grad = None if given.grad is None else given.grad.clone()
    return model


class _Read(nn.Module):
    """The backbone with a reader of its last feature map, by which the channels of the map are known."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.reader = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.reader(self.backbone(x)[-1])
        return read


def _channel_groups(model: Student, importance: Importance) -> list[_Group]:
    import torch_pruning as tp

    tower, side = model.image_encoder, model.config.image_px
    traced = _Read(tower.backbone, tower.channels).eval()
    graph = tp.DependencyGraph().build_dependency(traced, torch.zeros(1, 3, side, side), verbose=False)
    found = []
    for group in graph.get_all_groups(ignored_layers=[traced.reader], root_module_types=(nn.Conv2d, nn.Linear)):
        layers = [dep.target.module for dep, _ in group]
        if traced.reader in layers or any(_grouped(layer) for layer in layers):
            continue
        found.append(_group(graph, group, importance))
    return found


def _grouped(layer: nn.Module) -> bool:
    """Whether the layer's channels belong to groups of several."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels


def _unit_groups(model: Student, importance: Importance) -> list[_Group]:
    import torch_pruning as tp

    blocks = [block for block in model.modules() if isinstance(block, Block)]
    found = []
    for block in blocks:
        example = torch.zeros(1, model.config.width)
        graph = tp.DependencyGraph().build_dependency(block.feed, example, verbose=False)
        first: Any = block.feed[0]
        group = graph.get_pruning_group(first, tp.prune_linear_out_channels, list(range(first.out_features)))
        found.append(_group(graph, group, importance))
    return found


def _group(graph: Any, group: Any, importance: Importance) -> _Group:
    import torch_pruning as tp

    if importance == "taylor":
        scores = tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)(group)
    else:
        scores = tp.importance.GroupMagnitudeImportance(p=2)(group)
    first = group[0].dep
    return _Group(graph, first.target.module, first.handler, scores.detach())


def _take(groups: Sequence[_Group], share: float) -> None:
    """Take away the `share` of all channels of `groups` that scores lowest."""
    scores = torch.cat([group.scores for group in groups]) if groups else torch.zeros(0)
    count = round(share * len(scores))
    if not count:
        return
    limit = scores.sort().values[count - 1]
    for group in groups:
        width = len(group.scores)
        kept = _rounded(int((group.scores > limit).sum()), width)
        least = group.scores.argsort(stable=True)[: width - kept].sort().values.tolist()
        if least:
            group.graph.get_pruning_group(group.layer, group.remove, least).prune()


def _rounded(kept: int, width: int) -> int:
    """Return the multiple of 8 next to `kept`, between a quarter of `width` and all of it."""
    least = MULTIPLE * math.ceil(width / _LEAST / MULTIPLE)
    return min(width, max(least, MULTIPLE * round(kept / MULTIPLE)))


@torch.no_grad()
def _rebuilt(model: Student) -> Student:
    """Return a student made of the widths and weights of `model`, which the library left in pieces of its own.

    Raises:
        RuntimeError: it answers otherwise.
    """
    config = model.config
    whole = Student(msgspec.structs.replace(config, pruned=()))
    result = Student(msgspec.structs.replace(config, pruned=widths_of(model, whole)))
    result.load_state_dict(model.state_dict())
    result.eval()
    pixels = torch.zeros(1, config.image_px, config.image_px, 3, dtype=torch.uint8)
    if not all(map(torch.equal, result.image_encoder(pixels), model.image_encoder(pixels))):
        raise RuntimeError("built from its widths alone it answers otherwise")
    return result
