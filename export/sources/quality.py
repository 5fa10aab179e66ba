"""Task quality of a direct export on the user's pictures: of the original model and of every variant that runs here.

Retrieval (recall at 1, 5 and 10, both ways) for a dual encoder, CIDEr and BLEU for a captioner. The original is the
subject `student`, as in every bundle: it is what the gates compare variants with. A graph that has a limit of its own
is judged once more, among the original's others.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, Quality, Role
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.judged import JudgedLens
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure, recall_at_k
from pocketlens.export.graphs import student_graphs
from pocketlens.export.judging import judged_variants
from pocketlens.export.pipeline import Evaluation
from pocketlens.export.recipe import Gates
from pocketlens.export.reference import load_pixels
from pocketlens.export.sources.captioned import Captioned
from pocketlens.export.sources.exportable import OpenedSource

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["judge"]

_BATCH = 16


def judge(
    source: OpenedSource, pictures: Sequence[Captioned], *, seed: int, gates: Gates
) -> Callable[[Bundle], Evaluation]:
    """Return what `export_student` calls as `evaluate`.

    Args:
        source: the model.
        pictures: at least one, none of which calibrated.
        seed: of the bootstrap draws.
        gates: say which graphs are judged alone.
    """

    def evaluate(bundle: Bundle) -> Evaluation:
        bootstrap = Bootstrap(len(pictures), seed=seed)
        quality = _figures("student", *_original(source, pictures), pictures, bootstrap)
        for role, judged in judged_variants(bundle, student_graphs(source.model), gates):
            quality += _figures(judged.name, *_device(judged, source, pictures, role), pictures, bootstrap)
        return Evaluation(quality=tuple(quality))

    return evaluate


_Answers = tuple[NDArray[np.float32], NDArray[np.float32] | None, list[str]]


@torch.no_grad()
def _original(source: OpenedSource, pictures: Sequence[Captioned]) -> _Answers:
    """Return image embeddings, text embeddings (`None` without a text encoder) and captions of the eager model."""
    model, tokenizer = source.model, source.tokenizer
    images, captions = [], []
    for first in range(0, len(pictures), _BATCH):
        paths = [picture.image for picture in pictures[first : first + _BATCH]]
        pixels = torch.from_numpy(load_pixels(paths, model.preprocess))
        embedding, visual = model.original.images(pixels)
        images.append(embedding.numpy())
        if visual is not None:
            ids = model.original.captions(pixels, visual, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
            captions += [tokenizer.decode(row) for row in ids]
    if "text_encoder" not in model.modules:
        return np.concatenate(images), None, captions
    texts = _texts(pictures)
    vectors = [
        model.original.texts(torch.from_numpy(tokenizer.encode_batch(texts[first : first + _BATCH]))).numpy()
        for first in range(0, len(texts), _BATCH)
    ]
    return np.concatenate(images), np.concatenate(vectors), captions


def _device(
    lens: JudgedLens, source: OpenedSource, pictures: Sequence[Captioned], role: Role | None = None
) -> _Answers:
    """Return what `_original` does, of a bundle; with a `role`, only what that graph takes part in."""
    paths: list[Path] = [picture.image for picture in pictures]
    reads = "text_encoder" in source.model.modules and role not in {"caption_prefill", "caption_decode"}
    texts = lens.embed_texts(_texts(pictures)) if reads else None
    writes = lens.captions_pictures and role != "text_encoder"
    captions = [caption.text for caption in lens.captions(paths)] if writes else []
    return lens.embed_images(paths), texts, captions


def _figures(
    subject: str,
    images: NDArray[np.float32],
    texts: NDArray[np.float32] | None,
    captions: Sequence[str],
    pictures: Sequence[Captioned],
    bootstrap: Bootstrap,
) -> list[Quality]:
    figures: dict[str, Figure] = {}
    if texts is not None:
        owners = np.repeat(np.arange(len(pictures)), [len(picture.captions) for picture in pictures])
        figures |= recall_at_k(images, texts, cast("NDArray[np.intp]", owners), bootstrap=bootstrap)
    if captions:
        figures |= caption_figures(captions, [picture.captions for picture in pictures], bootstrap=bootstrap)
    return [
        Quality(subject=subject, metric=name, value=f.value, low=f.low, high=f.high, samples=f.samples)
        for name, f in figures.items()
    ]


def _texts(pictures: Sequence[Captioned]) -> list[str]:
    return [text for picture in pictures for text in picture.captions]
