"""A dual encoder as transformers saves it: CLIP, SigLIP, SigLIP 2 at a fixed size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.digest import digest_of
from pocketlens.distill.teachers.folder import card_of, teacher_errors
from pocketlens.distill.teachers.preprocessing import huggingface_pixels

__all__ = ["HfDualEncoder"]


class HfDualEncoder:
    """A model with `get_image_features` and `get_text_features`, its tokenizer and its image processor's settings.

    Args:
        name: a local folder, or a name on the hub.

    Raises:
        TeacherError: it is missing, incomplete or in another format.
    """

    def __init__(self, name: str) -> None:
        card = card_of(name)
        self.id, self.licence = card.id, card.licence
        with teacher_errors(name, "a CLIP or SigLIP model, its tokenizer and its image processor"), quiet_loading():
            self._model: Any = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self._pixels = huggingface_pixels(AutoImageProcessor.from_pretrained(name).to_dict(), name)
            self._length = int(self._model.config.text_config.max_position_embeddings)
            # SigLIP was trained with texts filled up to the full length; CLIP's mask makes padding no matter.
            self._padding = "max_length" if "siglip" in str(self._model.config.model_type) else "longest"
            self.preprocess = self._pixels.spec
            self.dim = int(self.embed_texts(["a picture"]).shape[1])
        self.digest = digest_of(name, self._model)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""
        return _unit(self._model.get_image_features(pixel_values=self._pixels.tensor(pixels)))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm; a text longer than the model's input is cut off."""
        tokens = self._tokenizer(
            list(texts), padding=self._padding, max_length=self._length, truncation=True, return_tensors="pt"
        )
        given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        if self._padding == "max_length":
            given.pop("attention_mask", None)
        return _unit(self._model.get_text_features(**given))


def _unit(features: Any) -> NDArray[np.float32]:
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    out: NDArray[np.float32] = nn.functional.normalize(pooled, dim=-1).numpy()
    return out
