"""The transformers side of `benchmarks.captions`: models whose weights are those of a bundle, and `generate()`.

Letters: `B` batch, `V` visual tokens of width `E`.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.students.student import Student, load_student

__all__ = ["SIZES", "BlipPeer", "StudentPeer", "write_blip"]

SIZES: Final[dict[str, tuple[dict[str, int], dict[str, int]]]] = {
    "phone": (
        {
            "vocab_size": 8192,
            "hidden_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
            "encoder_hidden_size": 192,
            "max_position_embeddings": 64,
        },
        {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "image_size": 224,
            "patch_size": 32,
        },
    ),
    # The defaults of BlipConfig but for the heads and the width of what is looked at: Salesforce's BLIP base.
    "base": ({"vocab_size": 30524, "num_attention_heads": 12, "encoder_hidden_size": 768}, {}),
}
"""Sizes of a BLIP captioner: of its text decoder and of its picture part. `phone`: 11.6 M + 2.4 M parameters."""

_GAIN: Final = 2.0


def write_blip(folder: Path, size: str) -> Path:
    """Save a BLIP captioner of random weights, with tokenizer and image processor, and return `folder`.

    Linear layers are scaled up: with their initial weights all pictures come out nearly the same.
    """
    text, vision = (dict(part) for part in SIZES[size])
    text |= {"bos_token_id": 4, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    # BLIP's own initializer_range of the picture part is 1e-10: with it all pictures are equal.
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config={**vision, "initializer_range": 0.02})
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= _GAIN
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data *= 4 * _GAIN
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "[DEC]", "[CLS]", *letters, *(f"##{letter}" for letter in letters)]
    names += [f"word{number}" for number in range(text["vocab_size"] - len(names))]
    side = model.config.vision_config.image_size
    with quiet_loading():
        model.eval().save_pretrained(folder)
        BertTokenizer(vocab={name: index for index, name in enumerate(names)}).save_pretrained(folder)
        BlipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


class BlipPeer:
    """A BLIP captioner as transformers runs it.

    Args:
        folder: where it was saved.
        mean: by channel, of pixels in [0, 1].
        std: likewise.
    """

    def __init__(self, folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        with quiet_loading():
            self._model: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @torch.no_grad()
    def generate(self, pixels: NDArray[np.uint8], tokens: int) -> tuple[list[list[int]], NDArray[np.float32]]:
        """Return `tokens` ids and the logits `(B, tokens, N)` for each of `pixels (B, H, W, 3)`."""
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255
        found = self._model.generate(
            pixel_values=(scaled - self._mean) / self._std,
            max_new_tokens=tokens,
            min_new_tokens=tokens,  # the weights are random: where a caption ends is noise
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return found.sequences[:, -tokens:].tolist(), torch.stack(found.logits, dim=1).numpy()


class _StudentConfig(PretrainedConfig):  # type: ignore[misc] # transformers has no types
    model_type = "pocketlens_student"


class _Decoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc] # likewise
    """A student's caption decoder behind `generate()`, with transformers' own cache and loop."""

    config_class = _StudentConfig
    main_input_name = "input_ids"

    def __init__(self, student: Student, *, bos_id: int, eos_id: int, pad_id: int) -> None:
        decoder = student.caption_decoder
        super().__init__(
            _StudentConfig(
                vocab_size=student.config.vocab_size,
                num_hidden_layers=len(decoder.layers),
                num_attention_heads=student.config.heads,
                hidden_size=student.config.width,
                bos_token_id=bos_id,
                eos_token_id=eos_id,
                pad_token_id=pad_id,
            )
        )
        self.decoder = decoder
        self.post_init()

    def init_weights(self) -> None:
        """Leave the trained weights as they are."""

    def see(self, visual: Tensor) -> DynamicCache:
        """Return a cache that holds the keys and values of `visual (B, V, E)`."""
        cache, x, count = DynamicCache(), visual, visual.shape[1]
        mask = self.decoder.mask[:, :, :count, :count]
        for index, block in enumerate(self.decoder.layers):
            query, keys, values = block.project(x)
            cache.update(keys, values, index)
            x = block.finish(x, query, keys, values, mask)
        return cache

    def prepare_inputs_for_generation(  # the picture is in the cache already: only the newest token goes in
        self, input_ids: Tensor, past_key_values: DynamicCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of one step."""
        return {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values}

    def forward(
        self, input_ids: Tensor, past_key_values: DynamicCache, return_dict: bool | None = None
    ) -> CausalLMOutputWithPast:
        """Decode one token a row."""
        decoder = self.decoder
        offset = past_key_values.get_seq_length() - decoder.visual_tokens
        x = decoder.tokens(input_ids) + decoder.positions.weight[offset]
        mask = torch.zeros(1)  # one new token sees all that is in a cache that grows
        for index, block in enumerate(decoder.layers):
            query, key, value = block.project(x)
            keys, values = past_key_values.update(key, value, index)
            x = block.finish(x, query, keys, values, mask)
        return CausalLMOutputWithPast(logits=decoder.logits(decoder.norm(x)), past_key_values=past_key_values)


class StudentPeer:
    """A trained student whose captions come from transformers' `generate()`.

    Args:
        run: folder of the student.
    """

    def __init__(self, run: Path) -> None:
        self._student, tokenizer = load_student(run)
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        self._decoder: Any = _Decoder(self._student, **ends).eval()

    @torch.no_grad()
    def generate(self, pixels: NDArray[np.uint8], tokens: int) -> tuple[list[list[int]], NDArray[np.float32]]:
        """Return at most `tokens` ids, the end token included, and the logits `(B, steps, N)` of each picture."""
        visual = self._student.image_encoder(torch.from_numpy(pixels))[1]
        found = self._decoder.generate(
            input_ids=torch.full((len(pixels), 1), self.bos_id),
            past_key_values=self._decoder.see(visual),
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        rows = [
            row[: row.index(self.eos_id) + 1] if self.eos_id in row else row for row in found.sequences[:, 1:].tolist()
        ]
        return rows, torch.stack(found.logits, dim=1).numpy()
