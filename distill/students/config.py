"""The shape of a student: plain numbers, saved beside every checkpoint."""

from typing import Final, Literal, NamedTuple

import msgspec

__all__ = ["PRESETS", "StudentConfig", "Width"]


class Width(NamedTuple):
    """How wide a layer is.

    Attributes:
        layer: its name in the student.
        inputs, outputs: channels or features.
    """

    layer: str
    inputs: int
    outputs: int


class StudentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the three parts of a student.

    Attributes:
        backbone: name of a timm model that supports `features_only`.
        output_stride: stride of the last feature map where the backbone lets one choose it;
            `None` leaves the backbone as it is.
        feature_map: which of the backbone's feature maps is used, counted from the end: -1 is the last, -2 the one
            of half its stride; what lies behind it is cut off.
        backbone_padding: `same` for TensorFlow's padding, which weights that come from there need: on the side that
            a stride leaves over. Empty for the backbone's own.
        image_px: side of the square input, pixels.
        mean, std: per-channel normalisation of pixels scaled to [0, 1]; it lives in the graph.
        visual_grid: at most this many visual tokens a side. A token is made of a square of the feature map where
            the side is a multiple of it; otherwise the map is average-pooled.
        image_queries: learned queries that attend to the feature map for the embedding, beside its mean; 0 for
            the mean alone.
        embed_dim: D, width of the shared embedding.
        width: E, width of text tower and caption decoder.
        heads: attention heads; `width` is a multiple of it.
        text_layers, decoder_layers: transformer blocks.
        text_length: T, length of the text encoder's input, special tokens included.
        caption_tokens: the longest caption in ids, the end token included.
        vocab_size: size of the tokenizer's vocabulary; the training sets it from the tokenizer.
        pruned: layers that are narrower than all these sizes make them; see `pocketlens.distill.compression.pruning`.
    """

    backbone: str
    output_stride: int | None = None
    feature_map: int = -1
    backbone_padding: Literal["", "same"] = ""
    image_px: int = 96
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    visual_grid: int = 7
    image_queries: int = 0
    embed_dim: int
    width: int
    heads: int
    text_layers: int
    decoder_layers: int
    text_length: int = 32
    caption_tokens: int = 28
    vocab_size: int
    pruned: tuple[Width, ...] = ()


PRESETS: Final[dict[str, StudentConfig]] = {
    "nano": StudentConfig(
        backbone="mobilenetv4_conv_small",
        feature_map=-2,
        visual_grid=3,
        image_px=96,
        embed_dim=128,
        width=128,
        heads=4,
        text_layers=3,
        decoder_layers=3,
        vocab_size=512,
    ),
    "small": StudentConfig(
        backbone="mobilenetv4_conv_small",
        image_px=224,
        visual_grid=7,
        embed_dim=256,
        width=256,
        heads=4,
        text_layers=3,
        decoder_layers=3,
        text_length=40,
        caption_tokens=32,
        vocab_size=4096,
    ),
    "base": StudentConfig(
        backbone="mobilenetv4_conv_medium",
        image_px=256,
        visual_grid=4,
        embed_dim=512,
        width=512,
        heads=8,
        text_layers=6,
        decoder_layers=6,
        text_length=48,
        caption_tokens=40,
        vocab_size=16384,
    ),
}
"""Named students: `nano` is what the demo trains on two CPU cores, `small` is for a phone, `base` for a good one.

All three backbones are convolutions with ReLU, which static int8 takes without loss (docs/export.md).
"""
