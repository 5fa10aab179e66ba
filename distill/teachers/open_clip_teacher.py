"""A dual encoder of open_clip (MobileCLIP, SigLIP, CLIP …), from a local folder or by the name it is built in under."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from pocketlens.core.errors import TeacherError
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.digest import digest_of
from pocketlens.distill.teachers.folder import card_of, teacher_errors
from pocketlens.distill.teachers.preprocessing import open_clip_pixels

__all__ = ["OpenClipTeacher"]


class OpenClipTeacher:
    """Opens a model through `open_clip.create_model_and_transforms` and keeps it in eval mode.

    A folder holds `open_clip_config.json`, weights and, where the tokenizer is not CLIP's own, a Hugging Face
    tokenizer: what `open_clip.push_to_hf_hub` writes.

    Args:
        name: the local folder, or `NAME` or `NAME@PRETRAINED` of a built-in model; without PRETRAINED the first weights
            that open_clip lists for it.

    Raises:
        TeacherError: it is missing, incomplete or in another format.
    """

    def __init__(self, name: str | Path) -> None:
        card = card_of(str(name))
        self.id, self.licence = card.id, card.licence
        with teacher_errors(str(name), "a model in open_clip's format (open_clip_config.json and weights)"):
            with quiet_loading():
                model, self._tokenizer = _create(str(name))
            self._model: Any = model.eval()
            self._pixels = open_clip_pixels(self._model.visual.preprocess_cfg, str(name))
            self.preprocess = self._pixels.spec
            self.dim = int(self.embed_texts(["a picture"]).shape[1])
        self.digest = digest_of(str(name), self._model)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""
        out: NDArray[np.float32] = self._model.encode_image(self._pixels.tensor(pixels), normalize=True).numpy()
        return out

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm."""
        out: NDArray[np.float32] = self._model.encode_text(self._tokenizer(list(texts)), normalize=True).numpy()
        return out


def _create(name: str) -> tuple[Any, Any]:
    if Path(name).is_dir():
        local = f"local-dir:{Path(name).resolve()}"
        return open_clip.create_model_and_transforms(local)[0], open_clip.get_tokenizer(local)
    plain, _, pretrained = name.partition("@")
    if plain not in open_clip.list_models():
        raise TeacherError(
            f"teacher open_clip:{name}",
            expected="a folder in open_clip's format, or a model that open_clip has built in (open_clip.list_models())",
            found="nothing at that path, and no model of that name",
            remedy="Correct the name in the recipe.",
        )
    tags = open_clip.list_pretrained_tags_by_model(plain)
    return open_clip.create_model(plain, pretrained=pretrained or tags[0]), open_clip.get_tokenizer(plain)
