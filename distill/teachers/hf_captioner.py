"""Captioners in Hugging Face's formats: VisionEncoderDecoder, BLIP, GIT, and image-text-to-text chat models."""

from typing import Any, Final

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.digest import digest_of
from pocketlens.distill.teachers.folder import card_of, teacher_errors
from pocketlens.distill.teachers.generated import beams_for, scored
from pocketlens.distill.teachers.preprocessing import Pixels, huggingface_pixels
from pocketlens.distill.teachers.teacher import TeacherCaption

__all__ = ["DEFAULT_PROMPT", "ChatCaptioner", "HfCaptioner", "open_hf_captioner"]

DEFAULT_PROMPT: Final = "Describe the picture in one short sentence."
"""What a chat model is asked when the recipe says nothing else."""

_PLAIN: Final = ("VisionEncoderDecoderModel", "BlipForConditionalGeneration", "GitForCausalLM")
_CHAT_SIDE_PX: Final = 512  # a chat model's processor resizes once more, to what it wants


def open_hf_captioner(
    name: str, *, prompt: str = DEFAULT_PROMPT, max_tokens: int = 32
) -> "HfCaptioner | ChatCaptioner":
    """Return the captioner `name`, a local folder or a name on the hub.

    Args:
        name: what `save_pretrained` wrote.
        prompt: what a chat model is asked; other models need none.
        max_tokens: captions are cut after this many new tokens.

    Raises:
        TeacherError: it is missing, incomplete or in another format.
    """
    with teacher_errors(name, "a captioner as save_pretrained writes it"), quiet_loading():
        kinds = AutoConfig.from_pretrained(name).architectures or []
    if set(kinds) & set(_PLAIN):
        return HfCaptioner(name, max_tokens=max_tokens)
    return ChatCaptioner(name, prompt=prompt, max_tokens=max_tokens)


class HfCaptioner:
    """A model that captions a picture without being asked, with its tokenizer and its image processor's settings.

    Args:
        name: a local folder, or a name on the hub.
        max_tokens: captions are cut after this many new tokens.

    Raises:
        TeacherError: it is missing, incomplete or in another format.
    """

    def __init__(self, name: str, *, max_tokens: int = 32) -> None:
        card = card_of(name)
        self.id, self.licence = card.id, card.licence
        self.max_tokens = max_tokens
        with teacher_errors(name, f"one of {', '.join(_PLAIN)} as save_pretrained writes it"), quiet_loading():
            kind = next((k for k in AutoConfig.from_pretrained(name).architectures or [] if k in _PLAIN), _PLAIN[0])
            # float32 whatever the file holds: half precision runs twenty times slower on a CPU (docs/LOG.md)
            model = getattr(transformers, kind).from_pretrained(name, dtype=torch.float32)
            self.model: Any = model.eval()
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._pixels: Pixels = huggingface_pixels(AutoImageProcessor.from_pretrained(name).to_dict(), name)
        self.preprocess = self._pixels.spec
        self.digest = digest_of(name, self.model)
        self._ends = _end_ids(self.model)

    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        """Return one greedy caption a picture for `pixels (B, H, W, 3)` uint8."""
        return [captions[0] for captions in self.captions(pixels, count=1, top_k=0)]

    @torch.inference_mode()
    def captions(self, pixels: NDArray[np.uint8], *, count: int, top_k: int) -> list[list[TeacherCaption]]:
        """Return `count` captions a picture, the likeliest first; see `CaptioningTeacher`."""
        with quiet_loading():  # generate() warns about padding in a decoder prompt, which a caption does not have
            output = self.model.generate(
                pixel_values=self._pixels.tensor(pixels), max_new_tokens=self.max_tokens, **beams_for(count)
            )
        ids, found = scored(output, ends=self._ends, top_k=top_k)
        return _grouped(found, self._tokenizer.batch_decode(ids, skip_special_tokens=True), count)


class ChatCaptioner:
    """An image-text-to-text chat model (SmolVLM, Florence and their like) that is asked for a caption.

    Pictures are brought to 512 x 512, the long side fitted, the rest grey; the model's own processor does the rest.

    Args:
        name: a local folder, or a name on the hub.
        prompt: the question.
        max_tokens: captions are cut after this many new tokens.

    Raises:
        TeacherError: it is missing, incomplete or in another format.
    """

    def __init__(self, name: str, *, prompt: str = DEFAULT_PROMPT, max_tokens: int = 32) -> None:
        card = card_of(name)
        self.id, self.licence = card.id, card.licence
        self.max_tokens, self.prompt = max_tokens, prompt
        with teacher_errors(name, "an image-text-to-text model and its processor"), quiet_loading():
            self.model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).eval()
            self._processor: Any = AutoProcessor.from_pretrained(name)
            self._text = self._asked(prompt)
        self._processor.tokenizer.padding_side = "left"
        self.preprocess = PreprocessSpec(height_px=_CHAT_SIDE_PX, width_px=_CHAT_SIDE_PX, fit="pad")
        self.digest = digest_of(name, self.model, prompt)
        self._ends = _end_ids(self.model)

    def _asked(self, prompt: str) -> str:
        """Return the prompt as the model wants it: through its chat template, or as it is where it has none."""
        if not getattr(self._processor, "chat_template", None):
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        """Return one greedy caption a picture for `pixels (B, H, W, 3)` uint8."""
        return [captions[0] for captions in self.captions(pixels, count=1, top_k=0)]

    @torch.inference_mode()
    def captions(self, pixels: NDArray[np.uint8], *, count: int, top_k: int) -> list[list[TeacherCaption]]:
        """Return `count` captions a picture, the likeliest first; see `CaptioningTeacher`."""
        pictures = [[Image.fromarray(picture)] for picture in pixels]
        inputs = self._processor(images=pictures, text=[self._text] * len(pictures), return_tensors="pt", padding=True)
        with quiet_loading():
            output = self.model.generate(**inputs, max_new_tokens=self.max_tokens, **beams_for(count))
        ids, found = scored(output, ends=self._ends, top_k=top_k)
        return _grouped(found, self._processor.batch_decode(ids, skip_special_tokens=True), count)


def _end_ids(model: Any) -> list[int]:
    # BLIP's generate() ends captions with the separator, whatever its generation settings say.
    blip = isinstance(model, transformers.BlipForConditionalGeneration)
    ends = model.config.text_config.sep_token_id if blip else model.generation_config.eos_token_id
    return [int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]


def _grouped(found: list[TeacherCaption], texts: list[str], count: int) -> list[list[TeacherCaption]]:
    """Return captions with their texts, `count` a picture, the likeliest first."""
    captions = [msgspec.structs.replace(one, text=text.strip()) for one, text in zip(found, texts, strict=True)]
    return [sorted(captions[at : at + count], key=lambda one: -one.logprob) for at in range(0, len(captions), count)]
