"""A captioner in Hugging Face format, from a local folder through `from_pretrained`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from pocketlens.core.errors import TeacherError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.folder import read_card, teacher_errors
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
