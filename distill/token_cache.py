"""The captions of a data set as ids, encoded once and mapped from then on."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import storage_errors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.reinforced import Reinforced

__all__ = ["all_texts", "token_ids"]

_CHUNK: Final = 8192


def all_texts(samples: Sequence[Sample], reinforced: Reinforced) -> Iterator[str]:
    """Yield every text in the order of the reinforced set's rows: human captions, then the teacher's."""
    for row, sample in enumerate(samples):
        yield from sample.captions
        yield from reinforced.captions(row)


def token_ids(
    samples: Sequence[Sample], reinforced: Reinforced, tokenizer: Tokenizer, *, cache: Path | None = None
) -> NDArray[np.int32]:
    """Return the ids `(M, T)` int32 of `all_texts`; with a folder `cache`, a read-only map of a file in it.

    Raises:
        StorageFull: no space for the cache.
    """
    texts, total = all_texts(samples, reinforced), int(reinforced.text_starts[-1])
    if cache is None:
        return tokenizer.encode_batch(list(texts))
    digest = hashlib.sha256(tokenizer.to_json().encode())
    for text in all_texts(samples, reinforced):
        digest.update(text.encode() + b"\0")
    target = cache / f"tokens-{tokenizer.text_length}-{digest.hexdigest()[:20]}.npy"
    if not target.exists():
        with storage_errors(target):
            cache.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            ids = np.lib.format.open_memmap(partial, "w+", np.int32, (total, tokenizer.text_length))
            start = 0
            while block := list(islice(texts, _CHUNK)):
                ids[start : start + len(block)] = tokenizer.encode_batch(block)
                start += len(block)
            ids.flush()
            del ids
            partial.rename(target)
    mapped: NDArray[np.int32] = np.load(target, mmap_mode="r")
    return mapped
