"""Judges one system on one split of `scenes`: every figure, with intervals, as JSON and for the manifest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Quality
from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import PictureFile, Sample
from pocketlens.distill.evaluation.captions import caption_figures
from pocketlens.distill.evaluation.judged import Judged, JudgedCaption
from pocketlens.distill.evaluation.metrics import (
    Bootstrap,
    Figure,
    class_vector,
    hallucination_figures,
    recall_at_k,
    zero_shot_accuracy,
)
from pocketlens.distill.pictures import batches
from pocketlens.distill.scenes.caption import class_prompts

__all__ = ["Evaluation", "evaluate", "token_identity"]

_CHUNK: Final = 64


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one system scored.

    Attributes:
        subject: the system's name.
        seed: of the bootstrap draws.
        sample_ids: the pictures, in order.
        figures: by name. Always `r1_i2t`, `r5_i2t`, `r10_i2t`, `r1_t2i`, `r5_t2i`, `r10_t2i`; with
            pictures of a single kind `zero_shot`; of a system that captions `cider`, `bleu1` to
            `bleu4`, `caption_length`, `hallucination`, `hallucination_captions` and `missed`.
            Scales: `pocketlens.distill.evaluation.metrics` and `.captions`.
        captions: one a picture; empty for a system that does not caption.
        token_ids: greedy ids of each caption; empty for a system that has none.
    """

    subject: str
    seed: int
    sample_ids: tuple[str, ...]
    figures: dict[str, Figure]
    captions: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()

    def quality(self) -> tuple[Quality, ...]:
        """Return the figures as a manifest carries them."""
        return tuple(
            Quality(
                subject=self.subject,
                metric=metric,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                samples=figure.samples,
            )
            for metric, figure in self.figures.items()
        )

    def to_json(self) -> bytes:
        """Return this as indented JSON, for `from_json`."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, source: str = "evaluation") -> "Evaluation":
        """Return what `to_json` wrote; `source` names it in an error.

        Raises:
            DataError: `data` is no evaluation.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise DataError(
                source,
                expected="an evaluation as JSON",
                found=str(error),
                remedy="Evaluate again.",
            ) from error


def evaluate(
    judged: Judged,
    samples: Sequence[Sample],
    folder: Path,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return the figures of `judged` on `samples`.

    Retrieval takes all captions of each picture. Zero-shot classification takes the pictures of a
    single kind and the prompts of `class_prompts`.

    Args:
        judged: the system.
        samples: the pictures with their captions and truth; at least one.
        folder: what the samples' pictures are relative to.
        seed: of the bootstrap draws.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: no samples, or a sample without captions.
        PictureError: a picture cannot be read.
    """
    _check(samples)
    bootstrap = Bootstrap(len(samples), seed=seed)
    images, captions = _look(judged, [sample.picture(folder) for sample in samples], progress)
    texts, owners = _embedded_captions(judged, samples)
    figures = recall_at_k(images, texts, owners, bootstrap=bootstrap)
    # Only the built-in scenes say which kinds of object a picture shows, and which classes there are.
    if any(len(sample.kinds) == 1 for sample in samples):
        figures["zero_shot"] = _zero_shot(judged, samples, images, bootstrap)
    written = [caption.text for caption in captions]
    if captions:
        figures |= caption_figures(written, [sample.captions for sample in samples], bootstrap=bootstrap)
    if captions and all(sample.kinds for sample in samples):
        figures |= hallucination_figures(written, [sample.kinds for sample in samples], bootstrap=bootstrap)
    token_ids = tuple(caption.token_ids for caption in captions)
    return Evaluation(
        subject=judged.name,
        seed=seed,
        sample_ids=tuple(sample.id for sample in samples),
        figures=figures,
        captions=tuple(written),
        token_ids=token_ids if any(token_ids) else (),
    )


def token_identity(a: Evaluation, b: Evaluation) -> float:
    """Return the share of pictures whose greedy ids are the same in both, in [0, 1].

    Raises:
        DataError: the two saw different pictures, or one has no ids.
    """
    if a.sample_ids != b.sample_ids or not a.token_ids or not b.token_ids:
        raise DataError(
            f"evaluations of {a.subject} and {b.subject}",
            expected="token ids for the same pictures in the same order",
            found=f"{len(a.token_ids)} and {len(b.token_ids)} captions with ids, pictures "
            f"{'equal' if a.sample_ids == b.sample_ids else 'different'}",
            remedy="Evaluate both on the same split; teachers have no ids of this vocabulary.",
        )
    return float(np.mean([x == y for x, y in zip(a.token_ids, b.token_ids, strict=True)]))


def _check(samples: Sequence[Sample]) -> None:
    bare = [sample.id for sample in samples if not sample.captions]
    if bare or not samples:
        raise DataError(
            "evaluation samples",
            expected="at least one picture, each with a caption",
            found=f"no caption for {bare[0]}" if bare else "none",
            remedy="Choose another split.",
        )


def _look(
    judged: Judged, paths: Sequence[PictureFile], progress: Callable[[int, int], None] | None
) -> tuple[NDArray[np.float32], list[JudgedCaption]]:
    """Return embeddings `(N, D)` and captions, none if `judged` does not caption."""
    images, captions = [], []
    for part in batches(len(paths), _CHUNK):
        images.append(judged.embed_images(paths[part]))
        if judged.captions_pictures:
            captions += judged.captions(paths[part])
        if progress is not None:
            progress(part.stop, len(paths))
    return np.concatenate(images), captions


def _embedded_captions(judged: Judged, samples: Sequence[Sample]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the vectors `(M, D)` of all captions and their owners `(M,)`."""
    texts = [text for sample in samples for text in sample.captions]
    owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    # Short captions repeat across pictures: each wording is embedded once.
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = judged.embed_texts(list(row_of))
    return vectors[[row_of[text] for text in texts]], owners


def _zero_shot(judged: Judged, samples: Sequence[Sample], images: NDArray[np.float32], bootstrap: Bootstrap) -> Figure:
    prompts = class_prompts()
    classes = np.stack([class_vector(judged.embed_texts(texts)) for texts in prompts.values()])
    index = {kind: row for row, kind in enumerate(prompts)}
    labels = np.array([index.get(s.kinds[0], -1) if len(s.kinds) == 1 else -1 for s in samples], dtype=np.intp)
    return zero_shot_accuracy(images, classes, labels, bootstrap=bootstrap)
