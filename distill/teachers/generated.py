"""From what transformers' `generate()` returns to captions with their scores: the same for every architecture."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pocketlens.distill.teachers.teacher import TeacherCaption

__all__ = ["beams_for", "score", "scored"]


def beams_for(count: int) -> dict[str, Any]:
    """Return the options of `generate()` for `count` captions: greedy for one, else a beam search of at least four."""
    return {
        "do_sample": False,
        "num_beams": 1 if count == 1 else max(4, count),
        "num_return_sequences": count,
        "return_dict_in_generate": True,
        "output_logits": True,
    }


def scored(output: Any, *, ends: Collection[int], top_k: int) -> tuple[Tensor, list[TeacherCaption]]:
    """Return the new ids `(S, L)` and, without texts, one caption for each of the S sequences.

    Log-probabilities are the model's own, whatever the search made of them (length penalties, forbidden repeats).

    Args:
        output: of `generate()` with `beams_for`.
        ends: ids that end a caption.
        top_k: alternatives that are kept at each position.
    """
    beams = getattr(output, "beam_indices", None)
    length = len(output.logits) if beams is None else min(beams.shape[1], len(output.logits))
    ids = output.sequences[:, -length:]
    if beams is None:
        logits = torch.stack(output.logits, dim=1)
    else:
        # Where a hypothesis stood among the beams when its token was chosen; -1 behind its end.
        rows = beams[:, :length].clamp(min=0)
        logits = torch.stack([step[rows[:, at]] for at, step in enumerate(output.logits[:length])], dim=1)
    return ids, score(logits, ids, ends=ends, top_k=top_k)


def score(logits: Tensor, ids: Tensor, *, ends: Collection[int], top_k: int) -> list[TeacherCaption]:
    """Return each caption's log-probability and, with `top_k` above 0, its ids and the likeliest alternatives.

    The texts are left empty: they are the tokenizer's business.

    Args:
        logits: `(S, L, vocab)`, at each position those that the id there was chosen from.
        ids: `(S, L)`; what follows a caption's first end is padding.
        ends: ids that end a caption; the first one counts.
        top_k: alternatives at each position.
    """
    every = torch.log_softmax(logits.to(torch.float32), dim=-1)
    is_end = torch.isin(ids, torch.tensor(sorted(ends), device=ids.device))
    real = is_end.cumsum(dim=1) - is_end.to(torch.int64) == 0
    own = every.gather(2, ids[..., None])[..., 0].masked_fill(~real, 0.0).sum(dim=1)
    if not top_k:
        return [TeacherCaption("", value) for value in own.tolist()]
    best, top = every.topk(top_k, dim=-1)
    return [
        TeacherCaption(
            "",
            value,
            ids[row, :length].to(torch.int32).cpu().numpy(),
            top[row, :length].to(torch.int32).cpu().numpy(),
            best[row, :length].cpu().numpy(),
        )
        for row, (value, length) in enumerate(zip(own.tolist(), real.sum(dim=1).tolist(), strict=True))
    ]
