"""CLIP and SigLIP as transformers saves them: `hf:PATH_OR_NAME`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from pocketlens.core.bundle import Role
from pocketlens.distill.quiet import quiet_loading
from pocketlens.export.sources.exportable import Exportable, OpenedSource
from pocketlens.export.sources.folder import config_text, digest_of, read_card, source_errors
from pocketlens.export.sources.huggingface_tokenizer import backend_json, clean_of, layout_of
from pocketlens.export.sources.lowerable import lowerable
from pocketlens.export.sources.preprocessing import huggingface_pixels
from pocketlens.export.sources.towers import ImageGraph, TextGraph, normalised
from pocketlens.export.sources.vocabulary import bundle_tokenizer

__all__ = ["open_dual_encoder"]


class _Tower(nn.Module):
    """A transformers encoder, its pooled output and a projection."""

    def __init__(self, encoder: nn.Module, projection: nn.Module, argument: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.argument = argument

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.projection(self.encoder(**{self.argument: x}).pooler_output)
        return features


class _Original:
    """The model as transformers runs it."""

    def __init__(self, model: Any, text: TextGraph, mean: Tensor, std: Tensor) -> None:
        self._model = model
        self._own_ids = text.own_ids
        self._normalised = partial(normalised, mean=mean, std=std)

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        return _unit(self._model.get_image_features(pixel_values=self._normalised(pixels))), None

    def texts(self, ids: Tensor) -> Tensor:
        return _unit(self._model.get_text_features(input_ids=self._own_ids(ids).to(torch.int64)))

    def captions(self, pixels: Tensor, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        raise NotImplementedError("a dual encoder has no captions: `Exportable.caption` is None")


def _unit(features: Any) -> Tensor:
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return nn.functional.normalize(pooled, dim=-1)


def open_dual_encoder(name: str) -> OpenedSource:
    """Return the CLIP or SigLIP model `name`: a folder that `save_pretrained` wrote, or a name on the hub.

    Model, tokenizer and image processor are read from the same place.

    Raises:
        ExportError: it cannot be opened, or a part of it cannot be carried over.
    """
    what = f"hf:{name}"
    with source_errors(what, "a CLIP or SigLIP model, its tokenizer and its image processor"), quiet_loading():
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        settings = AutoImageProcessor.from_pretrained(name).to_dict()
    pixels = huggingface_pixels(settings, what)
    context = int(model.config.text_config.max_position_embeddings)
    layout, clean = layout_of(tokenizer, what), clean_of(tokenizer, what)
    text_length = context if layout.bos_id is not None else context + 1
    source = backend_json(tokenizer, what)
    tokenizer_json, bundle = bundle_tokenizer(source, layout, text_length=text_length, clean=clean)
    ready: Any = lowerable(model)
    # SigLIP projects inside its encoders.
    image_head, text_head = (getattr(ready, part, nn.Identity()) for part in ("visual_projection", "text_projection"))
    replace = None if bundle.pad_id == layout.pad_id else (bundle.pad_id, layout.pad_id)
    text_tower = _Tower(ready.text_model, text_head, "input_ids")
    image_tower = _Tower(ready.vision_model, image_head, "pixel_values")
    text = TextGraph(text_tower, has_bos=layout.bos_id is not None, replace_pad=replace).eval()
    image = ImageGraph(image_tower, mean=pixels.mean, std=pixels.std).eval()
    modules: dict[Role, nn.Module] = {"image_encoder": image, "text_encoder": text}
    original = _Original(model, text, torch.tensor(pixels.mean), torch.tensor(pixels.std))
    with torch.no_grad():
        dim = original.texts(torch.from_numpy(bundle.encode_batch(["a picture"]))).shape[1]
    folder = Path(name) if Path(name).is_dir() else None
    card = read_card(folder, default_id=folder.resolve().name if folder else name)
    return OpenedSource(
        Exportable(modules, original, *pixels, dim, text_length, bundle.vocab_size),
        bundle,
        tokenizer_json,
        card.id,
        card.licence,
        digest_of(model.state_dict(), config_text(model.config), tokenizer_json),
        {"source": f"hf:{card.id}", "text_cleaning": clean},
        own_ids=lambda texts: _own(tokenizer, texts, context),
    )


def _own(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    ids: Tensor = tokenizer(
        list(texts), return_tensors="pt", padding="max_length", truncation=True, max_length=length
    ).input_ids
    return ids.to(torch.int32)
