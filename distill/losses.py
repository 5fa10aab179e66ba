"""The terms of the loss. Letters: `B` batch, `D` student embedding, `T` teacher embedding, `N` tokens."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["affinity", "caption_cross_entropy", "contrastive", "feature"]


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
