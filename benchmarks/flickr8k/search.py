"""Captions from visual tokens: greedy, by beam search, or drawn by chance.

Letters: `B` pictures, `P` visual tokens, `N` text tokens, `E` width.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.flickr8k.packed import Past, begun, next_states
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.caption_decoder import CaptionDecoder

__all__ = ["Drawn", "Found", "drawn", "searched", "texts"]

_NEVER: Final = -1e9


class Drawn(NamedTuple):
    """Ids `(M, N)` with the end token where it was reached, padded behind it, and whether it was `(M,)`."""

    ids: Tensor
    ended: Tensor


class Found(NamedTuple):
    """Ids `(B, N)` like `Drawn`'s and the captions' log-probabilities `(B,)`."""

    ids: Tensor
    scores: Tensor


def texts(tokenizer: Tokenizer, ids: Tensor | NDArray[np.int32]) -> list[str]:
    """Return the text of each row of `ids (M, N)`."""
    return [tokenizer.decode([one for one in row if one != tokenizer.pad_id]) for row in ids.tolist()]


@torch.no_grad()
def drawn(
    decoder: CaptionDecoder, visual: Tensor, tokenizer: Tokenizer, *, samples: int, generator: torch.Generator
) -> Drawn:
    """Return `samples` captions of each of `visual (B, P, E)`, those of a picture in a row, drawn token by token."""
    past = _repeated(begun(decoder, visual), samples)
    token = torch.full((len(visual) * samples,), tokenizer.bos_id)
    ended = torch.zeros(len(token), dtype=torch.bool)
    columns: list[Tensor] = []
    for at in range(decoder.caption_tokens):
        states, past = next_states(decoder, token, past, at=at)
        logits = decoder.logits(states)
        logits[:, [tokenizer.pad_id, tokenizer.bos_id]] = _NEVER
        chosen = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
        token = torch.where(ended, tokenizer.pad_id, chosen)
        columns.append(token)
        ended = ended | (token == tokenizer.eos_id)
        if bool(ended.all()):
            break
    return Drawn(torch.stack(columns, dim=1), ended)


@torch.no_grad()
def searched(
    decoder: CaptionDecoder, visual: Tensor, tokenizer: Tokenizer, *, beams: int = 1, alpha: float = 0.7
) -> Found:
    """Return the likeliest caption of each of `visual (B, P, E)` that beam search finds; one beam is greedy.

    Log-probabilities are divided by the length to the power `alpha` (Wu et al. 2016, section 7).
    """
    batch = len(visual)
    past = _repeated(begun(decoder, visual), beams)
    token = torch.full((batch * beams,), tokenizer.bos_id)
    ids = torch.zeros(batch * beams, 0, dtype=torch.int64)
    scores = torch.full((batch, beams), _NEVER)
    scores[:, 0] = 0.0  # all beams start equal: only the first counts
    done, lengths = torch.zeros(batch, beams, dtype=torch.bool), torch.zeros(batch, beams)
    first = torch.arange(batch)[:, None] * beams
    for at in range(decoder.caption_tokens):
        states, past = next_states(decoder, token, past, at=at)
        likely = decoder.logits(states).log_softmax(dim=-1).view(batch, beams, -1)
        likely[..., [tokenizer.pad_id, tokenizer.bos_id]] = _NEVER
        likely = likely.masked_fill(done[..., None], _NEVER)
        likely[..., tokenizer.pad_id] = torch.where(done, 0.0, likely[..., tokenizer.pad_id])
        total, grown = scores[..., None] + likely, lengths + ~done
        best = (total / grown[..., None] ** alpha).flatten(1).topk(beams, dim=1).indices
        beam, chosen = best // likely.shape[-1], best % likely.shape[-1]
        scores, lengths = total.flatten(1).gather(1, best), grown.gather(1, beam)
        done = done.gather(1, beam) | (chosen == tokenizer.eos_id)
        rows = (first + beam).flatten()
        ids = torch.cat([ids[rows], chosen.flatten()[:, None]], dim=1)
        if bool(done.all()):
            break
        if beams > 1:
            past = [(keys[rows], values[rows]) for keys, values in past]
        token = chosen.flatten()
    # Sorted by the normalised score: the first beam of each picture is the answer.
    return Found(ids.view(batch, beams, -1)[:, 0], scores[:, 0])


def _repeated(past: Past, times: int) -> Past:
    return [(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in past]
