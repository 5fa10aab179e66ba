"""A captioner in Hugging Face format, from a local folder through `from_pretrained`."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from pocketlens.core.errors import TeacherError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.folder import read_card, teacher_errors
from pocketlens.distill.teachers.scoring import score
from pocketlens.distill.teachers.teacher import TeacherCaption

__all__ = ["HfCaptioner"]

_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them


class HfCaptioner:
    """A `VisionEncoderDecoderModel` with its tokenizer and its image processor's settings.

    Args:
        folder: the local folder that `save_pretrained` wrote.
        max_tokens: captions are cut after this many new tokens.

    Raises:
        TeacherError: the folder is missing, incomplete or in another format.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 32) -> None:
        card = read_card(folder)
        self.id, self.licence = card.id, card.licence
        self.max_tokens = max_tokens
        with teacher_errors(folder, "a vision-encoder-decoder model as save_pretrained writes it"), quiet_loading():
            # float32 whatever the file holds: half precision runs twenty times slower on a CPU (docs/LOG.md)
            model = VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self.model = model.eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            settings = AutoImageProcessor.from_pretrained(folder, local_files_only=True).to_dict()
            self.preprocess = _spec(folder, settings)
            self._mean = torch.tensor(settings["image_mean"]).view(1, 3, 1, 1)
            self._std = torch.tensor(settings["image_std"]).view(1, 3, 1, 1)

    @torch.inference_mode()
    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        """Return one greedy caption a picture for `pixels (B, H, W, 3)` uint8."""
        images = torch.tensor(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        with quiet_loading():  # generate() warns about padding in a decoder prompt, which a caption does not have
            result = self._generate((images - self._mean) / self._std)
        logits = torch.stack(result.logits, dim=1)  # (B, N, vocab)
        new = result.sequences[:, -logits.shape[1] :]
        scores = torch.log_softmax(logits, dim=-1).gather(2, new[..., None])[..., 0]
        # generate() pads rows that ended early; a pad token costs nothing
        scores = scores.masked_fill(new == self.model.generation_config.pad_token_id, 0.0)
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        sums = scores.sum(dim=1).tolist()
        return [TeacherCaption(text.strip(), score) for text, score in zip(texts, sums, strict=True)]

    @torch.inference_mode()
    def captions(self, pixels: NDArray[np.uint8], *, count: int, top_k: int) -> list[list[TeacherCaption]]:
        """Return `count` captions a picture, the likeliest first; see `CaptioningTeacher`.

        A single one is the greedy one; more are the best of a beam search with `count` beams, at least four. Each is
        scored anew by one pass over the whole caption, so its log-probability is that of the text, not of the search.
        """
        if count == 1 and not top_k:
            return [[caption] for caption in self.caption(pixels)]
        images = torch.tensor(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        images = (images - self._mean) / self._std
        encoded = self.model.get_encoder()(pixel_values=images)
        # Taken before generate(), which spreads it over its beams in place.
        states = encoded.last_hidden_state.repeat_interleave(count, dim=0)
        with quiet_loading():
            sequences = self.model.generate(
                encoder_outputs=encoded,
                max_new_tokens=self.max_tokens,
                do_sample=False,
                num_beams=1 if count == 1 else max(4, count),
                num_return_sequences=count,
            )
        logits = self.model(
            encoder_outputs=(states,), decoder_input_ids=sequences[:, :-1]
        ).logits  # (B x count, L, vocab)
        found = score(logits, sequences[:, 1:], eos_id=int(self.model.generation_config.eos_token_id), top_k=top_k)
        texts = self._tokenizer.batch_decode(sequences, skip_special_tokens=True)
        captions = [msgspec.structs.replace(one, text=text.strip()) for one, text in zip(found, texts, strict=True)]
        return [
            sorted(captions[at : at + count], key=lambda one: -one.logprob) for at in range(0, len(captions), count)
        ]

    def _generate(self, images: Tensor) -> Any:
        return self.model.generate(
            pixel_values=images,
            max_new_tokens=self.max_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )


def _spec(folder: Path, settings: dict[str, object]) -> PreprocessSpec:
    """Return an image processor's settings as a spec; refuse what the spec cannot say."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    resample = settings.get("resample")
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys() or resample not in _FILTERS:
        raise TeacherError(
            f"teacher {folder}",
            expected="an image processor with height and width, bilinear (2) or bicubic (3) resampling",
            found=f"size {size}, resample {resample}",
            remedy="Correct preprocessor_config.json to what the model was trained with.",
        )
    fit = "crop" if settings.get("do_center_crop") else "squash"
    return PreprocessSpec(height_px=size["height"], width_px=size["width"], fit=fit, filter=_FILTERS[resample])  # type: ignore[arg-type]
