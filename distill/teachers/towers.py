"""A pair of frozen towers with trained heads: a timm backbone and a sentence-transformers text model.

::

    FOLDER/towers.json           a `TowersCard`
    FOLDER/heads.safetensors     image_head.0.weight … text_head.0.weight …: two multilayer perceptrons
    FOLDER/backbone.safetensors  the backbone's weights, unless the card names a file elsewhere
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.digest import digest_of
from pocketlens.distill.teachers.folder import teacher_errors
from pocketlens.distill.teachers.preprocessing import Pixels

__all__ = ["FrozenTowers", "TowersCard"]


class TowersCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`towers.json`.

    Attributes:
        id, licence: who the teacher is, and under which licence it came.
        backbone: name of the timm model.
        backbone_options: further arguments of `timm.create_model`.
        backbone_weights: a safetensors file, relative to the folder or absolute; half precision is widened.
        preprocess: its pictures, as a bundle's spec.
        mean, std: of pixels scaled to [0, 1].
        text_model: what `SentenceTransformer` opens: a folder, or a name on the hub.
        widths: of the heads' hidden layers, GELU between them.
        dim: D, the width of the shared embedding.
    """

    id: str
    licence: str
    backbone: str
    backbone_options: dict[str, str | int | float | bool] = {}
    backbone_weights: str = "backbone.safetensors"
    preprocess: PreprocessSpec
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    text_model: str
    widths: tuple[int, ...] = ()
    dim: int


class FrozenTowers:
    """The two towers and their heads; the towers' weights stay as they came.

    Args:
        name: the folder.

    Raises:
        TeacherError: a file is missing or does not fit.
    """

    def __init__(self, name: str) -> None:
        folder = Path(name)
        with teacher_errors(name, "towers.json, heads.safetensors and the towers that they name"), quiet_loading():
            from sentence_transformers import SentenceTransformer

            card = msgspec.json.decode((folder / "towers.json").read_bytes(), type=TowersCard)
            backbone = timm.create_model(card.backbone, pretrained=False, **card.backbone_options)
            weights = load_file(folder / card.backbone_weights)
            backbone.load_state_dict({key: value.float() for key, value in weights.items()})
            self._text: Any = SentenceTransformer(card.text_model, device="cpu")
            width = int(self._text.get_embedding_dimension() or 0)
            heads = {
                "image_head": _head(int(getattr(backbone, "head_hidden_size", backbone.num_features)), card),
                "text_head": _head(width, card),
            }
            self._heads = nn.ModuleDict(heads).eval()
            self._heads.load_state_dict(load_file(folder / "heads.safetensors"))
        self._backbone: Any = backbone.eval()
        self._pixels = Pixels(card.preprocess, card.mean, card.std)
        self.id, self.licence, self.dim, self.preprocess = card.id, card.licence, card.dim, card.preprocess
        self.digest = digest_of(name, self._heads)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""
        maps = self._backbone.forward_features(self._pixels.tensor(pixels))
        features = self._backbone.forward_head(maps, pre_logits=True)
        return _unit(self._heads["image_head"](features.flatten(1)))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm."""
        vectors = self._text.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return _unit(self._heads["text_head"](torch.from_numpy(np.asarray(vectors, dtype=np.float32))))


def _head(width: int, card: TowersCard) -> nn.Sequential:
    sizes = [width, *card.widths, card.dim]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.GELU()] if index else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _unit(features: Tensor) -> NDArray[np.float32]:
    out: NDArray[np.float32] = nn.functional.normalize(features, dim=-1).numpy()
    return out
