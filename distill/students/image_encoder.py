"""The image tower: one pass gives the embedding and the visual tokens of the caption."""

from typing import Any

import timm
import torch
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
        channels: int = backbone.feature_info.channels()[-1]
        # Folded into one multiply and one add: pixel * scale + shift.
        std = 255.0 * torch.tensor(config.std)
        self.register_buffer("scale", (1.0 / std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-255.0 * torch.tensor(config.mean) / std).view(1, 3, 1, 1), persistent=False)
        self.projection = nn.Linear(channels, config.embed_dim)
        self.adapter = nn.Linear(channels, config.width)
        self.adapter_norm = RMSNorm(config.width)
        self.eval()  # the probe must not count as training: it would move the batch norms' averages
        with torch.no_grad():
            side = self._feature_map(torch.zeros(1, config.image_px, config.image_px, 3)).shape[-1]
        self.train()
        self.pool_side = min(side, config.visual_grid)
        self.needs_pooling = side != self.pool_side
        self.visual_tokens = self.pool_side**2
        self.positions = nn.Parameter(torch.randn(1, self.visual_tokens, config.width) * 0.02)

    def _feature_map(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        features: Tensor = self.backbone(x)[-1]
        return features

    def features(self, pixels: Tensor) -> Tensor:
        """Return the last feature map `(B, C, h, w)` of `pixels (B, H, W, 3)` uint8."""
        return self._feature_map(pixels)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `(B, D)` and the visual tokens `(B, V, E)` of a feature map."""
        embedding = unit_norm(self.projection(features.mean(dim=(2, 3))))
        grid = nn.functional.adaptive_avg_pool2d(features, self.pool_side) if self.needs_pooling else features
        tokens = self.adapter(grid.flatten(2).transpose(1, 2))  # (B, V, E)
        return embedding, self.adapter_norm(tokens) + self.positions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`pixels (B, H, W, 3)` uint8 RGB -> embedding `(B, D)` of unit norm, visual tokens `(B, V, E)`."""
        return self.heads(self.features(pixels))


def _backbone(config: StudentConfig) -> nn.Module:
    options: dict[str, object] = {"features_only": True, "out_indices": (-1,), "pretrained": False}
    if config.output_stride is not None:
        options["output_stride"] = config.output_stride
    try:
        model: nn.Module = timm.create_model(config.backbone, **options)
    except (RuntimeError, TypeError, AttributeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"student.backbone = {config.backbone!r}",
            expected="a timm model with feature maps"
            + (f" that takes output_stride={config.output_stride}" if config.output_stride else ""),
            found=str(error) or type(error).__name__,
            remedy="Choose another backbone (timm.list_models() lists them) or drop output_stride.",
        ) from error
    return model
