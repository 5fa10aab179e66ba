"""What the eager model answers, and the inputs that quantization is calibrated with.

Letters: `N` pictures, `M` texts, `D` embedding, `V` visual tokens of width `W`, `T` text length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketlens.core.bundle import Role
from pocketlens.core.errors import DataError
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.student import Student
from pocketlens.export.sources.exportable import Exportable, exportable_of

__all__ = ["Feed", "Reference", "Samples", "calibration_feeds", "load_pixels", "reference_answers"]

Feed = dict[str, NDArray[Any]]
"""Inputs of one graph call by name."""

_BATCH = 32


@dataclass(frozen=True)
class Samples:
    """Real pictures and real texts. They need not belong together.

    Attributes:
        pictures: picture files, at least one.
        captions: texts, at least one.
    """

    pictures: Sequence[Path]
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if not self.pictures or not self.captions:
            raise DataError(
                "export samples",
                expected="at least one picture and one caption",
                found=f"{len(self.pictures)} pictures and {len(self.captions)} captions",
                remedy="Name pictures with captions: a graph is never compared on noise.",
            )

    def draw(self, count: int, *, seed: int) -> "Samples":
        """Return at most `count` pictures and captions, drawn without replacement."""
        rng = np.random.default_rng(seed)
        pictures = rng.permutation(len(self.pictures))[:count]
        captions = rng.permutation(len(self.captions))[:count]
        return Samples([self.pictures[i] for i in pictures], [self.captions[i] for i in captions])


@dataclass(frozen=True)
class Reference:
    """Inputs and the eager model's answers to them. Arrays of a part that the model lacks have no rows.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        ids: int32 (M, T).
        embeddings: float32 (N, D).
        visual_tokens: float32 (N, V, W), or (0, 0, 0).
        text_embeddings: float32 (M, D).
        caches: float32 (N, ...), the prefilled caption caches.
        captions: N greedy captions as ids, the end token included where reached.
    """

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int32]
    embeddings: NDArray[np.float32]
    visual_tokens: NDArray[np.float32]
    text_embeddings: NDArray[np.float32]
    caches: NDArray[np.float32]
    captions: list[list[int]]


def load_pixels(pictures: Sequence[Path], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return uint8 (N, H, W, 3); a picture that is refused raises its `PictureError`."""
    return np.stack([preprocess(picture, spec) for picture in pictures])


@torch.no_grad()
def reference_answers(
    student: Student | Exportable, tokenizer: Tokenizer, pixels: NDArray[np.uint8], ids: NDArray[np.int32]
) -> Reference:
    """Return what the original of `student` (in eval mode) answers to `pixels (N, H, W, 3)` and `ids (M, T)`.

    A model without a text encoder is not asked about `ids`, and the result holds none.
    """
    model = exportable_of(student)
    if "text_encoder" not in model.modules:
        ids = ids[:0]
    embeddings, visual, caches, captions = [], [torch.zeros(0, 0, 0)], [torch.zeros(0)], []
    for batch in _batches(pixels):
        embedding, tokens = model.original.images(batch)
        embeddings.append(embedding)
        if tokens is not None:
            visual.append(tokens)
            caches.append(model.modules["caption_prefill"](tokens))
            captions += model.original.captions(batch, tokens, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    texts = [torch.zeros(0, model.embed_dim), *(model.original.texts(batch) for batch in _batches(ids))]
    return Reference(
        pixels,
        ids,
        torch.cat(embeddings).numpy(),
        torch.cat(visual[1:] or visual).numpy(),
        torch.cat(texts).numpy(),
        torch.cat(caches[1:] or caches).numpy(),
        captions,
    )


@torch.no_grad()
def calibration_feeds(
    student: Student | Exportable,
    tokenizer: Tokenizer,
    pixels: NDArray[np.uint8],
    ids: NDArray[np.int32],
    *,
    seed: int,
) -> dict[Role, list[Feed]]:
    """Return inputs of batch 1 for every graph of the model, as they occur while pictures are captioned.

    The decode step is seen at one random step of each picture's greedy caption, with the cache that
    belongs to it.
    """
    model = exportable_of(student)
    reference = reference_answers(model, tokenizer, pixels, ids)
    feeds: dict[Role, list[Feed]] = {"image_encoder": [{"pixels": row[None]} for row in pixels]}
    if "text_encoder" in model.modules:
        feeds["text_encoder"] = [{"ids": row[None]} for row in ids]
    if model.caption is None:
        return feeds
    rng = np.random.default_rng(seed)
    picked = [int(rng.integers(len(caption))) for caption in reference.captions]
    decode: list[Feed] = []
    step, start = model.modules["caption_decode"], model.caption.prefix_length
    for row, (caption, offset) in enumerate(zip(reference.captions, picked, strict=True)):
        cache = torch.from_numpy(reference.caches[row : row + 1])
        for index, token in enumerate([tokenizer.bos_id, *caption][: offset + 1]):
            feed = (torch.tensor([token], dtype=torch.int32), torch.tensor([start + index], dtype=torch.int32))
            if index == offset:
                decode.append({"token": feed[0].numpy(), "position": feed[1].numpy(), "cache": cache.numpy()})
            cache = step(*feed, cache)[1]
    feeds["caption_prefill"] = [{"visual_tokens": row[None]} for row in reference.visual_tokens]
    feeds["caption_decode"] = decode
    return feeds


def _batches(array: NDArray[Any]) -> Iterator[Tensor]:
    for first in range(0, len(array), _BATCH):
        yield torch.from_numpy(array[first : first + _BATCH])
