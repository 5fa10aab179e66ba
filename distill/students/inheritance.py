"""A student that does not start from nothing: weights of its backbone, or of a larger student.

From a larger student the widths are cut by importance and the layers are taken evenly over its depth: the two manual
ways of weight inheritance of Wu et al. 2023 (TinyCLIP, section 3.2), with norms of weights as the measure.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens.core.errors import DataError, RecipeError
from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.student import Student

__all__ = ["inherit", "load_backbone"]

_MOST = 0.9  # of a backbone's values that a file must bring


def load_backbone(student: Student, path: Path) -> float:
    """Load the backbone's weights from a safetensors file of the same timm model; half precision is widened.

    Returns:
        The share of the backbone's values that the file brought; a classifier in the file is passed over.

    Raises:
        DataError: the file is missing or damaged, or brings less than 90 % of the values.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"backbone weights {path}",
            expected="a safetensors file",
            found=str(error),
            remedy="Correct student.backbone_weights in the recipe.",
        ) from error
    own = student.image_encoder.backbone.state_dict()
    found = {
        name: given[name].to(own[name].dtype) for name in own if name in given and given[name].shape == own[name].shape
    }
    share = sum(value.numel() for value in found.values()) / sum(value.numel() for value in own.values())
    if share < _MOST:
        raise DataError(
            f"backbone weights {path}",
            expected=f"the weights of {student.config.backbone} by their timm names",
            found=f"{len(found)} of {len(own)} tensors, {share:.0%} of the values",
            remedy="Choose the file of this backbone, or another student.backbone.",
        )
    student.image_encoder.backbone.load_state_dict(found, strict=False)
    return float(share)


@torch.no_grad()
def inherit(student: Student, larger: Student) -> float:
    """Fill `student` from `larger`, whose layers and widths are at least its own, and return the share filled.

    The backbone is taken where both have the same tensors. Text tower and captioner keep evenly spaced layers, the most
    important channels, heads and hidden units. Token tables are taken where both have the same vocabulary size; the
    caller sees to it that it is the same vocabulary.

    Raises:
        RecipeError: the larger one is smaller somewhere, or its heads have another width.
    """
    _check(student, larger)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    own = student.image_encoder.state_dict()
    same = {
        name: value
        for name, value in larger.image_encoder.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    student.image_encoder.load_state_dict(same, strict=False)
    _tower(student.text_encoder, larger.text_encoder)
    channels = _tower(student.caption_decoder, larger.caption_decoder)
    adapter, theirs = student.image_encoder.adapter, larger.image_encoder.adapter
    if adapter.weight.shape[1:] == theirs.weight.shape[1:]:  # its outputs are the captioner's channels
        adapter.weight.copy_(theirs.weight[channels])
        if adapter.bias is not None and theirs.bias is not None:
            adapter.bias.copy_(theirs.bias[channels])
        student.image_encoder.adapter_norm.weight.copy_(larger.image_encoder.adapter_norm.weight[channels])
    if student.image_encoder.positions.shape[1] == larger.image_encoder.positions.shape[1]:
        student.image_encoder.positions.copy_(larger.image_encoder.positions[:, :, channels])
    student.logit_scale.copy_(larger.logit_scale)
    after = student.state_dict()
    changed = sum(int((after[name] != value).sum()) for name, value in before.items())
    return float(changed / sum(value.numel() for value in before.values()))


def _check(student: Student, larger: Student) -> None:
    small, big = student.config, larger.config
    fields = ("width", "heads", "text_layers", "decoder_layers", "embed_dim", "text_length", "caption_tokens")
    less = [name for name in fields if getattr(big, name) < getattr(small, name)]
    if min(_hidden_units(larger)) < max(_hidden_units(student)):
        less.append("hidden units")  # it was pruned
    if less or big.width // big.heads != small.width // small.heads:
        raise RecipeError(
            "student.start",
            expected="a larger student whose attention heads are as wide",
            found=f"less {', '.join(less)}" if less else f"heads of {big.width // big.heads}",
            remedy="Choose another student to start from, or other sizes.",
        )


def _hidden_units(student: Student) -> list[int]:
    return [cast("Any", block.feed)[0].out_features for block in student.modules() if isinstance(block, Block)]


def _tower(small: Any, big: Any) -> Tensor:
    """Fill a text tower or a captioner; return which of the larger one's channels it keeps."""
    width = small.tokens.weight.shape[1]
    blocks, theirs = list(small.blocks), list(big.blocks)
    importance = big.tokens.weight.square().sum(dim=0)
    for block in theirs:
        importance = importance + block.attention.output.weight.square().sum(dim=1)
        importance = importance + block.feed[2].weight.square().sum(dim=1)
    channels = _best(importance, width)
    for index, block in enumerate(blocks):
        _block(block, theirs[round(index * (len(theirs) - 1) / max(1, len(blocks) - 1))], channels)
    small.norm.weight.copy_(big.norm.weight[channels])
    for name in ("tokens", "logits"):
        own, other = getattr(small, name, None), getattr(big, name, None)
        if own is not None and other is not None and own.weight.shape[0] == other.weight.shape[0]:
            own.weight.copy_(other.weight[:, channels])
    positions, given = small.positions, big.positions
    if isinstance(positions, nn.Embedding) and isinstance(given, nn.Embedding):
        positions.weight.copy_(given.weight[: positions.num_embeddings, channels])
    elif isinstance(positions, Tensor) and isinstance(given, Tensor):
        positions.copy_(given[:, : positions.shape[1], channels])
    projection, other = getattr(small, "projection", None), getattr(big, "projection", None)
    if projection is not None and other is not None and projection.out_features == other.out_features:
        projection.weight.copy_(other.weight[:, channels])
        projection.bias.copy_(other.bias)
    return channels


def _block(small: Block, big: Block, channels: Tensor) -> None:
    own, theirs = small.attention, big.attention
    depth = theirs.value.weight.shape[0] // theirs.heads
    by_head = theirs.value.weight.square().sum(dim=1) + theirs.output.weight.square().sum(dim=0)
    heads = _best(by_head.view(theirs.heads, depth).sum(dim=1), own.heads)
    inner = (heads[:, None] * depth + torch.arange(depth)).flatten()
    for name in ("query", "key", "value"):
        layer, given = getattr(own, name), getattr(theirs, name)
        layer.weight.copy_(given.weight[inner][:, channels])
        layer.bias.copy_(given.bias[inner])
    own.output.weight.copy_(theirs.output.weight[channels][:, inner])
    own.output.bias.copy_(theirs.output.bias[channels])
    feed, other = cast("Any", small.feed), cast("Any", big.feed)
    first, last = (feed[0], other[0]), (feed[2], other[2])
    units = _best(last[1].weight.square().sum(dim=0) + first[1].weight.square().sum(dim=1), first[0].weight.shape[0])
    first[0].weight.copy_(first[1].weight[units][:, channels])
    first[0].bias.copy_(first[1].bias[units])
    last[0].weight.copy_(last[1].weight[channels][:, units])
    last[0].bias.copy_(last[1].bias[channels])
    small.attention_norm.weight.copy_(big.attention_norm.weight[channels])
    small.feed_norm.weight.copy_(big.feed_norm.weight[channels])


def _best(importance: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest values, in their order."""
    return importance.topk(count).indices.sort().values
