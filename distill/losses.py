"""The terms of the loss. Letters: `B` batch, `D` student embedding, `T` teacher embedding, `N` tokens."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["affinity", "caption_cross_entropy", "contrastive", "feature", "interactive", "token_cross_entropy"]


def contrastive(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of matching rows of `images`, `texts (B, D)`, unit norm.

    Radford et al. 2021, figure 3. `scale` is the inverse temperature.
    """
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def affinity(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Return the KL from the teacher's to the student's picture-text similarities, both ways.

    Affinity mimicking, Wu et al. 2023 (TinyCLIP), section 3.1. `images`, `texts` are `(B, D)`, the
    teacher's `(B, T)`; all of unit norm. The teacher's similarities are divided by `temperature`.
    """
    student = scale * images @ texts.T
    teacher = teacher_images @ teacher_texts.T / temperature
    return (_divergence(teacher, student) + _divergence(teacher.T, student.T)) / 2


def feature(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of `projected`, `teacher (B, T)`: summed over T, averaged over B.

    Feature distillation, Yang et al. 2024 (CLIP-KD), section 3.3.
    """
    return (projected - teacher).square().sum(dim=1).mean()


def interactive(images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor, scale: Tensor) -> Tensor:
    """Return the InfoNCE of the student's pictures with the teacher's texts, and of its texts with their pictures.

    Interactive contrastive learning, Yang et al. 2024 (CLIP-KD), section 3.5. All are `(B, T)` of unit norm.
    """
    return (contrastive(images, teacher_texts, scale) + contrastive(teacher_images, texts, scale)) / 2


def token_cross_entropy(logits: Tensor, ids: Tensor, top_ids: Tensor, top_logprobs: Tensor) -> Tensor:
    """Return the cross-entropy to the teacher's likeliest tokens: a mean over tokens, then over the whole batch.

    Kim & Rush 2016, section 3.1, with the teacher's distribution cut to its likeliest tokens and scaled to sum 1.
    Captions without alternatives, human ones, count 0.

    Args:
        logits: `(B, N, vocab)` at each of the caption's ids.
        ids: `(B, N)`, the caption; the shapes' N may be longer than the alternatives'.
        top_ids: `(B, L, k)`, all 0 beyond a caption's end and for captions without alternatives.
        top_logprobs: `(B, L, k)`, likewise; below 0 elsewhere.
    """
    length = min(logits.shape[1], top_ids.shape[1])
    known = (top_logprobs[:, :length] < 0.0).any(dim=2)  # (B, L)
    target = torch.softmax(top_logprobs[:, :length], dim=2)
    scores = torch.log_softmax(logits[:, :length], dim=2).gather(2, top_ids[:, :length].to(torch.int64))
    tokens = -(target * scores).sum(dim=2) * known
    return (tokens.sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()


def caption_cross_entropy(logits: Tensor, ids: Tensor, *, pad_id: int) -> Tensor:
    """Return the mean negative log-likelihood a token of `ids (B, N)` under `logits (B, N, vocab)`."""
    return functional.cross_entropy(logits.flatten(0, 1), ids.flatten().to(torch.int64), ignore_index=pad_id)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(student, dim=1),
        functional.log_softmax(teacher, dim=1),
        log_target=True,
        reduction="batchmean",
    )
