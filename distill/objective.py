"""What a student is trained for: the terms of the loss, per picture and over the whole batch.

A step may be shared by several copies of the model, each with its part of the batch. Terms of single pictures are
computed by each copy, divided by the size of the whole batch; terms that compare pictures with each other need all
embeddings at once. So `look` comes first, `compare` second, and the sum over parts is the loss of the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketlens.distill import losses
from pocketlens.distill.batches import Batch
from pocketlens.distill.concepts import concept_loss
from pocketlens.distill.recipe import TrainRecipe
from pocketlens.distill.students.blocks import unit_norm
from pocketlens.distill.students.student import Student

__all__ = ["Look", "Objective"]


class Look(NamedTuple):
    """What one copy made of its part: embeddings `(b, D)` and its share of the per-picture terms by name."""

    images: Tensor
    texts: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """The student and the two heads that only training needs.

    Args:
        student: the student.
        teacher_dim: width of the teacher's embeddings.
        concepts: `(K,)` float32, the weights of the concept words; empty for none.
    """

    concept_weights: Tensor

    def __init__(self, student: Student, *, teacher_dim: int, concepts: Tensor) -> None:
        super().__init__()
        self.student = student
        self.projection = nn.Linear(student.config.embed_dim, teacher_dim, bias=False)
        self.concept_head = nn.Linear(student.image_encoder.channels, len(concepts)) if len(concepts) else None
        self.register_buffer("concept_weights", concepts, persistent=False)

    def look(self, batch: Batch, whole: Batch, settings: TrainRecipe, pad_id: int) -> Look:
        """Return embeddings and per-picture terms of `batch`, a part of `whole`. A term of weight 0 is left out."""
        weights, student = settings.losses, self.student
        share = len(batch.ids) / len(whole.ids)
        features, images, visual = student.image_encoder.look(batch.pixels)
        longest = int((batch.ids != pad_id).sum(dim=1).max())
        ids = batch.ids[:, :longest]  # padding changes no answer and costs time
        embeds = bool(weights.compares or weights.feature)
        texts = student.text_encoder(ids) if embeds else images.detach()
        terms: dict[str, Tensor] = {}
        if weights.feature:
            distance = losses.feature(self.projection(images), batch.teacher_images) + losses.feature(
                self.projection(texts), batch.teacher_texts
            )
            terms["feature"] = weights.feature * share * distance
        # One caption a picture and step, human or the teacher's, drawn in proportion to the two weights: in
        # expectation the weighted sum of both losses, at the price of one pass through the decoder.
        if weights.caption + weights.sequence:
            tokens = student.config.caption_tokens + 1
            ids = ids[:, :tokens]
            logits = student.caption_decoder(visual, ids[:, :-1])
            loss = losses.caption_cross_entropy(logits, ids[:, 1:], pad_id=pad_id)
            share_of_tokens = _targets(ids, pad_id) / _targets(whole.ids[:, :tokens], pad_id)
            terms["caption"] = (weights.caption + weights.sequence) * share_of_tokens * loss
        if weights.token and weights.caption + weights.sequence:
            scores = losses.token_cross_entropy(logits, ids[:, 1:], batch.top_ids, batch.top_logprobs)
            terms["token"] = weights.token * share * scores
        if weights.concepts and self.concept_head is not None:
            logits = self.concept_head(features.mean(dim=(2, 3)))
            terms["concepts"] = weights.concepts * share * concept_loss(logits, batch.concepts, self.concept_weights)
        return Look(images, texts, terms)

    def compare(self, images: Tensor, texts: Tensor, whole: Batch, settings: TrainRecipe) -> dict[str, Tensor]:
        """Return the terms over all pairs of `images`, `texts (B, D)` by name. A term of weight 0 is left out."""
        weights, scale = settings.losses, self.student.logit_scale.exp()
        terms: dict[str, Tensor] = {}
        if weights.contrastive:
            terms["contrastive"] = weights.contrastive * losses.contrastive(images, texts, scale)
        if weights.interactive:
            terms["interactive"] = weights.interactive * losses.interactive(
                unit_norm(self.projection(images)),
                unit_norm(self.projection(texts)),
                whole.teacher_images,
                whole.teacher_texts,
                scale,
            )
        if weights.affinity:
            terms["affinity"] = weights.affinity * losses.affinity(
                images,
                texts,
                scale,
                whole.teacher_images,
                whole.teacher_texts,
                temperature=settings.teacher_temperature,
            )
        return terms


def _targets(ids: Tensor, pad_id: int) -> int:
    """Return the number of tokens of `ids (B, T)` that are predicted: all but padding and the first."""
    return int(torch.count_nonzero(ids[:, 1:] != pad_id))
