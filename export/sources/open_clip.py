"""open_clip's dual encoders: `open_clip:NAME`, `open_clip:NAME@PRETRAINED`, `open_clip:local-dir:PATH`."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import open_clip
import torch
from torch import Tensor, nn

from pocketlens.core.bundle import Role
from pocketlens.core.errors import ExportError
from pocketlens.distill.quiet import quiet_loading
from pocketlens.export.sources.cleaning import Clean
from pocketlens.export.sources.clip_bpe import clip_bpe
from pocketlens.export.sources.exportable import Exportable, OpenedSource
from pocketlens.export.sources.folder import digest_of, read_card, source_errors
from pocketlens.export.sources.huggingface_tokenizer import backend_json, layout_of
from pocketlens.export.sources.lowerable import lowerable
from pocketlens.export.sources.preprocessing import open_clip_pixels
from pocketlens.export.sources.towers import ImageGraph, TextGraph, normalised
from pocketlens.export.sources.vocabulary import Layout, bundle_tokenizer

__all__ = ["RANDOM", "open_open_clip"]

RANDOM: Final = "random"
"""As PRETRAINED: the architecture with random weights of a fixed seed, to try an export out."""

_LOCAL: Final = "local-dir:"


class _ImageTower(nn.Module):
    """`model.visual`, whose result may come with tokens that nobody reads."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        pooled: Tensor = features[0] if isinstance(features, tuple) else features
        return pooled


class _TextTower(nn.Module):
    """`model.encode_text`, without the weights of the image tower."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.copy(model)
        parts = {name: part for name, part in model._modules.items() if name not in ("visual", "text_decoder")}
        self.model._modules = parts

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = cast("Any", self.model).encode_text(ids, normalize=False)
        return features


class _Original:
    """The model as open_clip made it."""

    def __init__(self, model: nn.Module, own_ids: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor) -> None:
        self._model: Any = model
        self._own_ids = own_ids
        self._normalised = partial(normalised, mean=mean, std=std)

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        embedding: Tensor = self._model.encode_image(self._normalised(pixels), normalize=True)
        return embedding, None

    def texts(self, ids: Tensor) -> Tensor:
        embedding: Tensor = self._model.encode_text(self._own_ids(ids).to(torch.int64), normalize=True)
        return embedding

    def captions(self, pixels: Tensor, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        raise NotImplementedError("a dual encoder has no captions: `Exportable.caption` is None")


def open_open_clip(name: str) -> OpenedSource:
    """Return the open_clip model `name`: a built-in name, `NAME@PRETRAINED`, or `local-dir:PATH`.

    Weights of a built-in name without PRETRAINED are the first that open_clip lists for it.

    Raises:
        ExportError: open_clip cannot open it, or a part of it cannot be carried over.
    """
    what = f"open_clip:{name}"
    folder = Path(name.removeprefix(_LOCAL)) if name.startswith(_LOCAL) else None
    with source_errors(what, "a model that open_clip can create, and its tokenizer"), quiet_loading():
        model, tokenizer = _create(name)
        settings = cast("dict[str, Any]", cast("Any", model.visual).preprocess_cfg)
    pixels = open_clip_pixels(settings, what)
    context = int(tokenizer.context_length)
    source, layout, clean = _tokenizer(tokenizer, what)
    text_length = context if layout.bos_id is not None else context + 1
    tokenizer_json, bundle = bundle_tokenizer(source, layout, text_length=text_length, clean=clean)
    ready = lowerable(model)
    replace = None if bundle.pad_id == layout.pad_id else (bundle.pad_id, layout.pad_id)
    text = TextGraph(_TextTower(ready), has_bos=layout.bos_id is not None, replace_pad=replace).eval()
    image = ImageGraph(_ImageTower(cast("nn.Module", ready.visual)), mean=pixels.mean, std=pixels.std).eval()
    modules: dict[Role, nn.Module] = {"image_encoder": image, "text_encoder": text}
    original = _Original(model, text.own_ids, torch.tensor(pixels.mean), torch.tensor(pixels.std))
    with torch.no_grad():
        dim = original.texts(torch.from_numpy(bundle.encode_batch(["a picture"]))).shape[1]
    card = read_card(folder, default_id=folder.resolve().name if folder else name)
    return OpenedSource(
        Exportable(modules, original, *pixels, dim, text_length, bundle.vocab_size),
        bundle,
        tokenizer_json,
        card.id,
        card.licence,
        digest_of(model.state_dict(), json.dumps(settings, default=str), tokenizer_json),
        {"source": what if folder is None else f"open_clip:{_LOCAL}{folder.resolve().name}", "text_cleaning": clean},
        own_ids=lambda texts: _own(tokenizer, texts),
    )


def _create(name: str) -> tuple[nn.Module, Any]:
    if name.startswith(_LOCAL):
        model = open_clip.create_model(f"{_LOCAL}{Path(name.removeprefix(_LOCAL)).resolve()}")
        return model.eval(), open_clip.get_tokenizer(f"{_LOCAL}{Path(name.removeprefix(_LOCAL)).resolve()}")
    plain, _, pretrained = name.partition("@")
    if plain not in open_clip.list_models():
        raise ExportError(
            f"open_clip:{name}",
            expected="a model that open_clip has built in (open_clip.list_models()), or local-dir:PATH",
            found=repr(plain),
            remedy="Correct the name.",
        )
    if pretrained == RANDOM:
        torch.manual_seed(0)
        model = open_clip.create_model(plain, pretrained=None)
    else:
        tags = open_clip.list_pretrained_tags_by_model(plain)
        model = open_clip.create_model(plain, pretrained=pretrained or tags[0])
    return model.eval(), open_clip.get_tokenizer(plain)


def _tokenizer(tokenizer: Any, what: str) -> tuple[str, Layout, Clean]:
    """Return the model's `tokenizer.json`, its layout and the cleaning that open_clip does before."""
    cleaning = {
        open_clip.tokenizer._clean_lower: "lower",
        open_clip.tokenizer._clean_whitespace: "whitespace",
        open_clip.tokenizer._clean_canonicalize: "canonicalize",
    }
    clean = cast("Clean", cleaning[tokenizer.clean_fn])
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        if tokenizer.reduction_fn is not None:
            raise _unfit(what, "texts that are cut at their end", "a reduction mask")
        return *clip_bpe(tokenizer), clean
    if getattr(tokenizer, "tokenizer_mode", "") or getattr(tokenizer, "strip_sep_token", False):
        raise _unfit(what, "ids as the tokenizer gives them", "tokenizer_mode or strip_sep_token")
    return backend_json(tokenizer.tokenizer, what), layout_of(tokenizer.tokenizer, what), clean


def _own(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(list(texts))
    return ids.to(torch.int32)


def _unfit(what: str, expected: str, found: str) -> ExportError:
    return ExportError(f"tokenizer of {what}", expected=expected, found=found, remedy="Choose another model.")
