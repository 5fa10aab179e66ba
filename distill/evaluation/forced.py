"""How probable a given sentence is to a captioning teacher, whatever its architecture.

`generate()` is made to write the sentence, and the logits that it would have chosen from are read: the same code for
encoder-decoders, for models that put the picture before the text, and for chat models behind their prompt.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from pocketlens.distill.evaluation.judged import Scores
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.hf_captioner import ChatCaptioner, HfCaptioner

__all__ = ["caption_logprobs"]

_ROWS: Final = 32


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers' base class is untyped here
    """Leaves one token possible at each step: `ids (S, L)`."""

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only.scatter_(1, self._ids[:, self._step, None].to(scores.device), 0.0)
        self._step += 1
        return only


def caption_logprobs(
    captioner: HfCaptioner | ChatCaptioner, pixels: NDArray[np.uint8], texts: Sequence[Sequence[str]]
) -> list[Scores]:
    """Return, for each picture, the natural log-probability of each of its texts, their ends left out.

    Args:
        captioner: the teacher.
        pixels: `(B, H, W, 3)`, preprocessed by `captioner.preprocess`.
        texts: B groups.
    """
    # The teachers keep tokenizer and pixels to themselves; this is the one place that needs them as they are.
    tokenizer: Any = captioner._processor.tokenizer if isinstance(captioner, ChatCaptioner) else captioner._tokenizer
    rows = [(picture, text) for picture, group in enumerate(texts) for text in group]
    result: list[Scores] = [{} for _ in texts]
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for _, text in part]
        inputs = _inputs(captioner, pixels[[picture for picture, _ in part]])
        for (picture, text), value in zip(part, _forced(captioner, inputs, ids), strict=True):
            result[picture][text] = value
    return result


def _inputs(captioner: HfCaptioner | ChatCaptioner, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    if isinstance(captioner, ChatCaptioner):
        pictures = [[Image.fromarray(picture)] for picture in pixels]
        asked = [captioner._text] * len(pictures)
        return dict(captioner._processor(images=pictures, text=asked, return_tensors="pt", padding=True))
    return {"pixel_values": captioner._pixels.tensor(pixels)}


@torch.inference_mode()
def _forced(captioner: HfCaptioner | ChatCaptioner, inputs: dict[str, Any], ids: list[list[int]]) -> list[float]:
    longest = max(len(row) for row in ids)
    padded = torch.zeros((len(ids), longest), dtype=torch.int64)  # what follows a text is not read
    for row, own in zip(padded, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
    with quiet_loading():
        output = captioner.model.generate(
            **inputs,
            max_new_tokens=longest,
            min_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([_Forced(padded)]),
            return_dict_in_generate=True,
            output_logits=True,
        )
    every = torch.log_softmax(torch.stack(output.logits, dim=1).to(torch.float32), dim=-1)
    own_logprobs = every.gather(2, padded.to(every.device)[..., None])[..., 0]
    return [float(row[: len(own)].sum()) for row, own in zip(own_logprobs, ids, strict=True)]
