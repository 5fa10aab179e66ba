"""A foreign model's own preprocessing as a spec of the bundle, with mean and standard deviation for the graph."""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, cast

from pocketlens.core.errors import ExportError
from pocketlens.core.preprocess import PreprocessSpec

__all__ = ["Pixels", "huggingface_pixels", "open_clip_pixels"]

_Filter = Literal["bicubic", "bilinear"]

_FITS: Final[dict[str, Literal["crop", "pad", "squash"]]] = {"shortest": "crop", "longest": "pad", "squash": "squash"}
# Pillow's numbers, as preprocessor_config.json has them.
_FILTERS: Final[dict[int, _Filter]] = {2: "bilinear", 3: "bicubic"}
_RESCALE: Final = 1 / 255


class Pixels(NamedTuple):
    """The spec, and mean and standard deviation of pixels scaled to [0, 1]."""

    spec: PreprocessSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_clip_pixels(config: Mapping[str, Any], what: str) -> Pixels:
    """Return open_clip's `preprocess_cfg`; `what` names the model in messages.

    Raises:
        ExportError: a resize mode or an interpolation that the spec cannot say.
    """
    size, mode = config["size"], str(config.get("resize_mode") or "shortest")
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = str(config.get("interpolation") or "bicubic")
    if mode not in _FITS or interpolation not in _FILTERS.values():
        raise _unfit(what, f"resize_mode in {sorted(_FITS)}, bicubic or bilinear", f"{mode}, {interpolation}")
    fill = int(config.get("fill_color") or 0)
    spec = PreprocessSpec(
        height_px=height,
        width_px=width,
        fit=_FITS[mode],
        filter=cast("_Filter", interpolation),
        pad_colour=(fill, fill, fill),
    )
    return Pixels(spec, tuple(config["mean"]), tuple(config["std"]))


def huggingface_pixels(settings: Mapping[str, Any], what: str) -> Pixels:
    """Return what an image processor does (`to_dict()` of it); `what` names the model in messages.

    Raises:
        ExportError: steps that the spec cannot say, such as a resize to one size and a crop to a smaller one.
    """
    resample = int(settings.get("resample") or 0)
    if not settings.get("do_resize", True) or resample not in _FILTERS:
        raise _unfit(what, "a resize, bilinear (2) or bicubic (3)", f"resample {resample}")
    factor = float(settings.get("rescale_factor") or 0.0)
    if not settings.get("do_rescale", True) or abs(factor - _RESCALE) > 1e-6:
        raise _unfit(what, "pixels scaled by 1/255", f"rescale_factor {factor}")
    size = dict(settings["size"])
    crop = dict(settings["crop_size"]) if settings.get("do_center_crop") else None
    if settings.get("do_pad"):
        raise _unfit(what, "no padding", "do_pad")
    if crop is None and {"height", "width"} <= size.keys():
        spec = PreprocessSpec(height_px=size["height"], width_px=size["width"], fit="squash", filter=_FILTERS[resample])
    elif crop is not None and _covers(size, crop):
        spec = PreprocessSpec(height_px=crop["height"], width_px=crop["width"], fit="crop", filter=_FILTERS[resample])
    else:
        raise _unfit(what, "a resize to height x width, or of the shortest edge and a crop to it", f"{size}, {crop}")
    if not settings.get("do_normalize", True):
        return Pixels(spec, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Pixels(spec, tuple(settings["image_mean"]), tuple(settings["image_std"]))


def _covers(size: Mapping[str, int], crop: Mapping[str, int]) -> bool:
    """Whether a resize to `size` leaves nothing to do but to cut off one of the two sides."""
    return size.get("shortest_edge") == crop["height"] == crop["width"]


def _unfit(what: str, expected: str, found: str) -> ExportError:
    return ExportError(
        f"preprocessing of {what}",
        expected=expected,
        found=found,
        remedy="Version 1 of the spec cannot say this (docs/preprocessing.md). Correct the model's preprocessing "
        "configuration if it is not what the model was trained with.",
    )
