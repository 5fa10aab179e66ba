"""BLIP captioners as transformers saves them: `hf:PATH_OR_NAME`."""

from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration

from pocketlens.core.bundle import CaptionSpec, Role
from pocketlens.core.errors import ExportError
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.students.blocks import unit_norm
from pocketlens.export.sources.cross_attention import BlipDecodeStep, BlipPrefill
from pocketlens.export.sources.exportable import Exportable, OpenedSource
from pocketlens.export.sources.folder import config_text, digest_of, read_card, source_errors
from pocketlens.export.sources.huggingface_tokenizer import backend_json
from pocketlens.export.sources.lowerable import lowerable
from pocketlens.export.sources.preprocessing import huggingface_pixels
from pocketlens.export.sources.towers import ImageGraph, normalised
from pocketlens.export.sources.vocabulary import Layout, bundle_tokenizer

__all__ = ["CAPTION_TOKENS", "open_captioner"]

CAPTION_TOKENS: Final = 20
"""Longest caption in ids, the end token included: the default of BLIP's own text configuration."""

# What generate() does beyond taking the most probable token, and the values that turn it off.
_PLAIN: Final[dict[str, float | int | None]] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
}


class _ImageWithTokens(ImageGraph):
    """`ImageGraph` of BLIP's picture part, which gives its tokens as well."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override] # two outputs, by contract
        """`pixels (B, H, W, 3)` uint8 RGB -> `(B, D)` of unit norm, visual tokens `(B, V, E)`."""
        seen = self.tower(pixel_values=self.normalise(pixels))
        return unit_norm(seen.pooler_output), seen.last_hidden_state


class _Original:
    """The model as transformers runs it; captions come from its own `generate`."""

    def __init__(self, model: BlipForConditionalGeneration, max_tokens: int, mean: Tensor, std: Tensor) -> None:
        self._model: Any = model
        self._max_tokens = max_tokens
        self._normalised = partial(normalised, mean=mean, std=std)

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        seen = self._model.vision_model(pixel_values=self._normalised(pixels))
        return nn.functional.normalize(seen.pooler_output, dim=-1), seen.last_hidden_state

    def texts(self, ids: Tensor) -> Tensor:
        raise NotImplementedError("a captioner has no text encoder: `Exportable.modules` has none")

    def captions(self, pixels: Tensor, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        with quiet_loading():
            rows = self._model.generate(
                pixel_values=self._normalised(pixels),
                max_new_tokens=self._max_tokens,
                do_sample=False,
                num_beams=1,
                **_PLAIN,
            ).tolist()
        return [_until(row[1:] if row[0] == bos_id else row, eos_id) for row in rows]


def _until(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def open_captioner(name: str, *, max_tokens: int = CAPTION_TOKENS) -> OpenedSource:
    """Return the BLIP captioner `name`: a folder that `save_pretrained` wrote, or a name on the hub.

    Its bundle captions. It has no text encoder; the embedding is BLIP's pooled picture feature, which compares
    pictures with pictures only.

    Args:
        name: where model, tokenizer and image processor are.
        max_tokens: the longest caption in ids, the end token included.

    Raises:
        ExportError: it cannot be opened, or a part of it cannot be carried over.
    """
    what = f"hf:{name}"
    with source_errors(what, "a BLIP captioner, its tokenizer and its image processor"), quiet_loading():
        model: Any = BlipForConditionalGeneration.from_pretrained(
            name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        settings = AutoImageProcessor.from_pretrained(name).to_dict()
    pixels = huggingface_pixels(settings, what)
    text = model.config.text_config
    if not 1 <= max_tokens <= text.max_position_embeddings:
        raise ExportError(
            f"captions of {what}",
            expected=f"1 to {text.max_position_embeddings} ids, as many positions as the model has",
            found=str(max_tokens),
            remedy="Ask for shorter captions.",
        )
    # What generate() begins, ends and fills up with (transformers, BlipForConditionalGeneration.generate).
    layout = Layout(pad_id=text.pad_token_id, bos_id=text.bos_token_id, eos_id=text.sep_token_id)
    source = backend_json(tokenizer, what)
    tokenizer_json, bundle = bundle_tokenizer(source, layout, text_length=max_tokens + 2)
    ready: Any = lowerable(model)
    image = _ImageWithTokens(ready.vision_model, mean=pixels.mean, std=pixels.std).eval()
    with torch.no_grad():
        empty = torch.zeros(1, pixels.spec.height_px, pixels.spec.width_px, 3, dtype=torch.uint8)
        embedding, visual = image(empty)
    spec = CaptionSpec(prefix_length=visual.shape[1], max_tokens=max_tokens)
    modules: dict[Role, nn.Module] = {
        "image_encoder": image,
        "caption_prefill": BlipPrefill(ready.text_decoder, max_tokens=max_tokens).eval(),
        "caption_decode": BlipDecodeStep(
            ready.text_decoder, visual_tokens=spec.prefix_length, max_tokens=max_tokens
        ).eval(),
    }
    original = _Original(model, max_tokens, torch.tensor(pixels.mean), torch.tensor(pixels.std))
    folder = Path(name) if Path(name).is_dir() else None
    card = read_card(folder, default_id=folder.resolve().name if folder else name)
    facts = {"source": f"hf:{card.id}", "embedding": "pooled picture feature; pictures with pictures only"}
    if ignored := _ignored(model):
        facts["generation_settings_ignored"] = ", ".join(ignored)
    return OpenedSource(
        Exportable(modules, original, *pixels, embedding.shape[1], max_tokens + 2, int(text.vocab_size), caption=spec),
        bundle,
        tokenizer_json,
        card.id,
        card.licence,
        digest_of(model.state_dict(), config_text(model.config), tokenizer_json, str(max_tokens)),
        facts,
    )


def _ignored(model: Any) -> list[str]:
    """Return the settings of the model's own generation that plain greedy decoding does without."""
    configs = [model.generation_config, model.text_decoder.generation_config]
    beams = [f"num_beams={config.num_beams}" for config in configs if (config.num_beams or 1) > 1]
    others = [
        f"{name}={value}"
        for config in configs
        for name, plain in _PLAIN.items()
        if (value := getattr(config, name, None)) not in (None, plain)
    ]
    return sorted({*beams, *others})
