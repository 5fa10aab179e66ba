"""A look at pictures that nobody trains on, for the curves and for stopping early."""

import csv
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pocketlens.core.errors import storage_errors
from pocketlens.distill import losses
from pocketlens.distill.pictures import PixelSource, batches
from pocketlens.distill.students.student import Student

__all__ = ["Validation", "append_row"]

_CHUNK = 64


class Validation:
    """Pictures with one caption each, and how well a student does on them.

    Args:
        pixels: `(V, H, W, 3)` uint8 in the student's preprocessing.
        ids: `(V, T)` int32, one caption each.
        pad_id: the tokenizer's.
        every: steps between two looks.
    """

    def __init__(self, pixels: PixelSource, ids: NDArray[np.int32], *, pad_id: int, every: int) -> None:
        self._pixels, self._ids, self._pad_id, self.every = pixels, ids, pad_id, every

    @torch.inference_mode()
    def look(self, student: Student, device: torch.device) -> dict[str, float]:
        """Return `loss`, the sum of `contrastive` (InfoNCE over all V pictures) and `caption` (nats a token).

        The student comes back in the mode that it was in.
        """
        was_training = student.training
        student.eval()
        images, texts, nats, tokens = [], [], 0.0, 0
        for rows in batches(len(self._ids), _CHUNK):
            ids = torch.from_numpy(np.array(self._ids[rows])).to(device)
            image, visual = student.image_encoder(torch.from_numpy(np.array(self._pixels[rows])).to(device))
            images.append(image)
            texts.append(student.text_encoder(ids))
            said = ids[:, : student.config.caption_tokens + 1]
            count = int((said[:, 1:] != self._pad_id).sum())
            logits = student.caption_decoder(visual, said[:, :-1])
            nats += count * float(losses.caption_cross_entropy(logits, said[:, 1:], pad_id=self._pad_id))
            tokens += count
        student.train(was_training)
        contrastive = float(losses.contrastive(torch.cat(images), torch.cat(texts), student.logit_scale.exp()))
        caption = nats / max(tokens, 1)
        return {"loss": contrastive + caption, "contrastive": contrastive, "caption": caption}


def append_row(path: Path, row: dict[str, float]) -> None:
    """Add one row to the CSV file `path`, with a header if it is new.

    Raises:
        StorageFull: no space left.
    """
    with storage_errors(path):
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow({name: value if math.isfinite(value) else "" for name, value in row.items()})
