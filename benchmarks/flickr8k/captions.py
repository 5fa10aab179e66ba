"""The student's captioner on the frozen backbone's cached maps.

Letters: `B` pictures, `K` captions of a picture, `P` visual tokens, `N` text tokens, `E` width.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.flickr8k.descent import Descent, StudentTraining, dropping
from benchmarks.flickr8k.small import Lesson, as_maps, encoded
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.caption_decoder import CaptionDecoder
from pocketlens.distill.students.student import Student

__all__ = ["train_captions"]

_PAD = 0


def train_captions(
    student: Student,
    tokenizer: Tokenizer,
    lesson: Lesson,
    training: StudentTraining,
    *,
    words: Tensor,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train adapter and decoder in place on all captions of each picture; return the loss of each step.

    The captions of a picture share one pass over the visual prefix, which does not see them.

    Args:
        student: its backbone, heads and text tower stay as they are.
        tokenizer: the student's.
        lesson: what is learnt from.
        training: how.
        words: `(vocabulary, E)`, where token vectors and logits start.
        after_epoch: called with the epoch's number and loss while the student has its mean weights, in eval mode.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    count = len(lesson.captions)
    ids = encoded(tokenizer, lesson.texts).reshape(count, 5, -1)
    image, decoder = student.image_encoder, student.caption_decoder
    weights: list[Tensor] = [
        *image.adapter.parameters(),
        *image.adapter_norm.parameters(),
        image.positions,
        *decoder.parameters(),
    ]
    with torch.no_grad():
        decoder.tokens.weight.copy_(words)
        decoder.logits.weight.copy_(words * words.shape[1] ** -0.5)
    each = count // training.batch
    descent = Descent(weights, training, steps=training.epochs * each)
    dropout, curve = nn.Dropout(training.dropout), []
    with dropping(decoder.layers, dropout):
        student.train()
        for step in range(descent.steps):
            if step % each == 0:
                order = rng.permutation(count)
            rows = order[step % each * training.batch :][: training.batch]
            view = rng.integers(training.views, size=len(rows))
            maps = dropout(torch.from_numpy(lesson.maps[view, rows].astype(np.float32)))
            _, visual = image.heads(as_maps(maps))
            batch = torch.from_numpy(ids[rows][:, :, : training.tokens])
            batch = batch[:, :, : int((batch != _PAD).sum(dim=2).max())]
            states = _states(decoder, visual, batch[:, :, :-1])
            targets = batch[:, :, 1:].long()
            real = targets != _PAD
            logits = decoder.logits(dropout(states[real]))
            loss = functional.cross_entropy(logits, targets[real], label_smoothing=training.smoothing)
            curve.append(descent.step(loss))
            if (step + 1) % each == 0:
                student.eval()
                with descent.averaged():
                    after_epoch((step + 1) // each, float(np.mean(curve[-each:])))
                student.train()
    descent.finish()
    student.eval()
    return curve


def _states(decoder: CaptionDecoder, visual: Tensor, ids: Tensor) -> Tensor:
    """Return the states `(B, K, N, E)` before the logits of `ids (B, K, N)` behind one prefix `visual (B, P, E)`."""
    captions, tokens, prefix = ids.shape[1], ids.shape[2], visual.shape[1]
    text = (decoder.tokens(ids) + decoder.positions.weight[:tokens]).flatten(1, 2)
    place = torch.arange(captions * tokens)
    caption, time = place // tokens, place % tokens
    mask = torch.full((prefix + len(place), prefix + len(place)), -1e4)
    mask[:, :prefix] = 0.0
    mask[prefix:, prefix:][(caption[:, None] == caption) & (time <= time[:, None])] = 0.0
    x = torch.cat([visual, text], dim=1)
    for block in decoder.layers:
        x = block(x, mask[None, None])
    states: Tensor = decoder.norm(x[:, prefix:]).unflatten(1, (captions, tokens))
    return states
