"""What a captioner thinks of captions that are already written: one pass, all positions at once."""

import torch
from torch import Tensor

from pocketlens.distill.teachers.teacher import TeacherCaption

__all__ = ["score"]


def score(logits: Tensor, ids: Tensor, *, eos_id: int, top_k: int) -> list[TeacherCaption]:
    """Return each caption's log-probability and, with `top_k` above 0, its ids and the likeliest alternatives.

    The texts are left empty: they are the tokenizer's business.

    Args:
        logits: `(B, L, vocab)`, at each position those of the id that stands there.
        ids: `(B, L)`; what follows a caption's first `eos_id` is padding.
        eos_id: the id that ends a caption; it counts.
        top_k: alternatives at each position.
    """
    every = torch.log_softmax(logits.to(torch.float32), dim=-1)
    ended = (ids == eos_id).cumsum(dim=1) - (ids == eos_id).to(torch.int64)  # ends before this position
    real = ended == 0
    own = every.gather(2, ids[..., None])[..., 0].masked_fill(~real, 0.0).sum(dim=1)
    if not top_k:
        return [TeacherCaption("", value) for value in own.tolist()]
    best, top = every.topk(top_k, dim=-1)
    return [
        TeacherCaption(
            "",
            value,
            ids[row, :length].to(torch.int32).numpy(),
            top[row, :length].to(torch.int32).numpy(),
            best[row, :length].numpy(),
        )
        for row, (value, length) in enumerate(zip(own.tolist(), real.sum(dim=1).tolist(), strict=True))
    ]
