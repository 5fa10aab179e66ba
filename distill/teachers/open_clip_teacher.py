"""A dual encoder in open_clip's format, from a local folder or by hub name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from pocketlens.core.errors import TeacherError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.folder import read_card, teacher_errors

__all__ = ["OpenClipTeacher"]

_FITS = {"shortest": "crop", "longest": "pad", "squash": "squash"}


class OpenClipTeacher:
    """Opens a folder through `open_clip.create_model_and_transforms` and keeps the model in eval mode.

    The folder holds `open_clip_config.json`, weights and, where the tokenizer is not CLIP's own, a
    Hugging Face tokenizer: what `open_clip.push_to_hf_hub` writes.

    Args:
        folder: the local folder.

    Raises:
        TeacherError: the folder is missing, incomplete or in another format.
    """

    def __init__(self, folder: Path) -> None:
        card = read_card(folder)
        self.id, self.licence = card.id, card.licence
        with teacher_errors(folder, "a model in open_clip's format (open_clip_config.json and weights)"):
            with quiet_loading():
                model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder.resolve()}")
                self._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder.resolve()}")
            self._model = model.eval()
            settings = model.visual.preprocess_cfg
            self.preprocess = _spec(folder, settings)
            self._mean = torch.tensor(settings["mean"]).view(1, 3, 1, 1)
            self._std = torch.tensor(settings["std"]).view(1, 3, 1, 1)
            self.dim = int(self.embed_texts(["a picture"]).shape[1])

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""
        images = torch.tensor(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        out: NDArray[np.float32] = self._model.encode_image((images - self._mean) / self._std, normalize=True).numpy()
        return out

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm."""
        out: NDArray[np.float32] = self._model.encode_text(self._tokenizer(list(texts)), normalize=True).numpy()
        return out


def _spec(folder: Path, settings: dict[str, Any]) -> PreprocessSpec:
    """Return open_clip's `preprocess_cfg` as a spec: same resize, same crop, same bits."""
    size, fit = settings["size"], str(settings.get("resize_mode") or "shortest")
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = str(settings.get("interpolation") or "bicubic")
    if fit not in _FITS or interpolation not in ("bicubic", "bilinear"):
        raise TeacherError(
            f"teacher {folder}",
            expected=f"resize_mode in {sorted(_FITS)} and interpolation bicubic or bilinear",
            found=f"{fit} and {interpolation}",
            remedy="Set preprocess_cfg in open_clip_config.json to what the model was trained with.",
        )
    return PreprocessSpec(height_px=height, width_px=width, fit=_FITS[fit], filter=interpolation)  # type: ignore[arg-type]
