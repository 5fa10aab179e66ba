"""A teacher's own preprocessing as a spec, with mean and standard deviation for the tensor."""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.errors import TeacherError
from pocketlens.core.preprocess import PreprocessSpec

__all__ = ["Pixels", "huggingface_pixels", "open_clip_pixels"]

_Filter = Literal["bicubic", "bilinear"]
_FITS: Final[dict[str, Literal["crop", "pad", "squash"]]] = {"shortest": "crop", "longest": "pad", "squash": "squash"}
_FILTERS: Final[dict[int, _Filter]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as the settings have them


class Pixels(NamedTuple):
    """The spec, and mean and standard deviation of pixels scaled to [0, 1]."""

    spec: PreprocessSpec
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def tensor(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return `pixels (B, H, W, 3)` uint8 as the model's input `(B, 3, H, W)` float32."""
        scaled = torch.tensor(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std


def open_clip_pixels(settings: Mapping[str, Any], what: str) -> Pixels:
    """Return open_clip's `preprocess_cfg`: same resize, same crop, same bits. `what` names the model in messages.

    Raises:
        TeacherError: a resize mode or an interpolation that the spec cannot say.
    """
    size, mode = settings["size"], str(settings.get("resize_mode") or "shortest")
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = str(settings.get("interpolation") or "bicubic")
    if mode not in _FITS or interpolation not in _FILTERS.values():
        raise _unfit(
            what, f"resize_mode in {sorted(_FITS)} and interpolation bicubic or bilinear", f"{mode} and {interpolation}"
        )
    spec = PreprocessSpec(height_px=height, width_px=width, fit=_FITS[mode], filter=cast("_Filter", interpolation))
    return Pixels(spec, tuple(settings["mean"]), tuple(settings["std"]))


def huggingface_pixels(settings: Mapping[str, Any], what: str) -> Pixels:
    """Return what a transformers image processor does (`to_dict()` of it); `what` names the model in messages.

    Raises:
        TeacherError: steps that the spec cannot say, such as a resize to one size and a crop to a smaller one.
    """
    resample, size = settings.get("resample"), dict(settings.get("size") or {})
    if resample not in _FILTERS:
        raise _unfit(what, "bilinear (2) or bicubic (3) resampling", f"resample {resample}")
    crop = dict(settings.get("crop_size") or {}) if settings.get("do_center_crop") else None
    if crop is None and {"height", "width"} <= size.keys():
        fit: Literal["crop", "squash"] = "squash"
        height, width = size["height"], size["width"]
    elif crop is not None and (
        size.get("shortest_edge") == crop["height"] == crop["width"] or size == crop  # both resize, then cut off
    ):
        fit, height, width = "crop", crop["height"], crop["width"]
    else:
        raise _unfit(what, "a size with height and width, or a shortest edge and a crop to it", f"{size}, {crop}")
    spec = PreprocessSpec(height_px=height, width_px=width, fit=fit, filter=_FILTERS[cast("int", resample)])
    if not settings.get("do_normalize", True):
        return Pixels(spec)
    return Pixels(spec, tuple(settings["image_mean"]), tuple(settings["image_std"]))


def _unfit(what: str, expected: str, found: str) -> TeacherError:
    return TeacherError(
        f"preprocessing of {what}",
        expected=expected,
        found=found,
        remedy="Correct its preprocessing configuration to what the model was trained with.",
    )
