"""The image tower: one pass gives the embedding and the visual tokens of the caption."""

from typing import Any

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import Tensor, nn

from pocketlens.core.errors import RecipeError
from pocketlens.distill.students.blocks import RMSNorm, unit_norm
from pocketlens.distill.students.config import StudentConfig

__all__ = ["ImageEncoder"]


class ImageEncoder(nn.Module):
    """uint8 pixels -> embedding and visual tokens. Cast and normalisation are inside.

    Args:
        config: the student's sizes.

    Raises:
        RecipeError: timm does not know the backbone, or it has no feature maps.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        backbone: Any = _backbone(config)
        self.backbone: nn.Module = backbone
        self.channels: int = backbone.feature_info.channels()[-1]
        # Folded into one multiply and one add: pixel * scale + shift.
        std = 255.0 * torch.tensor(config.std)
        self.register_buffer("scale", (1.0 / std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-255.0 * torch.tensor(config.mean) / std).view(1, 3, 1, 1), persistent=False)
        self.eval()  # the probe must not count as training: it would move the batch norms' averages
        with torch.no_grad():
            side = self.features(torch.zeros(1, config.image_px, config.image_px, 3)).shape[-1]
        self.train()
        grid = min(side, config.visual_grid)
        self.pool_side = 0 if side % grid == 0 else grid
        merge = 1 if self.pool_side else side // grid
        self.visual_tokens = grid**2
        self.attention = _PlaceAttention(self.channels, config.image_queries, side) if config.image_queries else None
        self.projection = nn.Linear(self.channels * (1 + config.image_queries), config.embed_dim)
        # One token sees merge x merge places: patch merging (Liu et al. 2021, Swin, section 3.1).
        self.adapter = nn.Conv2d(self.channels, config.width, merge, stride=merge)
        self.adapter_norm = RMSNorm(config.width)
        self.positions = nn.Parameter(torch.randn(1, self.visual_tokens, config.width) * 0.02)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the feature map `(B, C, h, w)` of `pixels (B, H, W, 3)` uint8."""
        x = pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        features: Tensor = self.backbone(x)[-1]
        return features

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `(B, D)` and the visual tokens `(B, V, E)` of a feature map."""
        pooled = features.mean(dim=(2, 3))
        if self.attention is not None:
            pooled = torch.cat([pooled, self.attention(features)], dim=1)
        embedding = unit_norm(self.projection(pooled))
        grid = nn.functional.adaptive_avg_pool2d(features, self.pool_side) if self.pool_side else features
        tokens = self.adapter(grid).flatten(2).transpose(1, 2)  # (B, V, E)
        return embedding, self.adapter_norm(tokens) + self.positions

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature map, the embedding and the visual tokens of `pixels`; see `features` and `heads`."""
        features = self.features(pixels)
        return features, *self.heads(features)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`pixels (B, H, W, 3)` uint8 RGB -> embedding `(B, D)` of unit norm, visual tokens `(B, V, E)`."""
        return self.heads(self.features(pixels))


class _PlaceAttention(nn.Module):
    """What learned queries gather from the places of a feature map; raw features, so that a mean is the zero point."""

    def __init__(self, channels: int, queries: int, side: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(channels, queries, 1, bias=False)
        self.prior = nn.Parameter(torch.randn(1, queries, side * side) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C, h, w)` -> `(B, Q C)`."""
        weights = torch.softmax(self.scores(features).flatten(2) + self.prior, dim=2)  # (B, Q, h w)
        gathered: Tensor = torch.bmm(weights, features.flatten(2).transpose(1, 2)).flatten(1)
        return gathered


def _backbone(config: StudentConfig) -> nn.Module:
    options: dict[str, object] = {"features_only": True, "out_indices": (config.feature_map,), "pretrained": False}
    if config.backbone_padding:
        options["pad_type"] = config.backbone_padding
    if config.output_stride is not None:
        options["output_stride"] = config.output_stride
    try:
        model: Any = timm.create_model(config.backbone, **options)
    except (RuntimeError, TypeError, AttributeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"student.backbone = {config.backbone!r}",
            expected="a timm model with feature maps"
            + (f" that takes output_stride={config.output_stride}" if config.output_stride else ""),
            found=str(error) or type(error).__name__,
            remedy="Choose another backbone (timm.list_models() lists them) or drop output_stride.",
        ) from error
    if isinstance(model, MobileNetV3Features | EfficientNetFeatures):
        # These two run, and carry, the stages behind the asked for map as well.
        last = int(model.feature_info.module_name()[-1].split(".")[1])
        model.blocks = model.blocks[: last + 1]
    backbone: nn.Module = model
    return backbone
