"""A reinforced data set: what the teachers said about every picture, read by row from mapped shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.shards import open_shard, unpack_vectors

__all__ = ["Alternatives", "Reinforced", "read_reinforced"]

_NEEDED: Final = frozenset({"images", "params", "text_ends", "texts", "written"})

Alternatives = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Ids `(B, L, k)` and log-probabilities `(B, L, k)` of the likeliest tokens; see `pocketlens.distill.shards`."""


class Reinforced:
    """The shards of one data set, rows in the order of its samples. Memory: 12 bytes a picture.

    Args:
        shards: mapped arrays of each shard, see `pocketlens.distill.shards`.

    Attributes:
        views: R, views of each picture.
        dim: D, width of the teacher's embeddings.
        text_starts: `(N + 1,)` int64; texts of picture i are rows `text_starts[i]` to `text_starts[i + 1]`.
        written: `(N,)` int32; so many of them, the last ones, the teacher wrote.
    """

    def __init__(self, shards: Sequence[dict[str, NDArray[Any]]]) -> None:
        self._shards = shards
        self.views, self.dim = (int(size) for size in shards[0]["images"].shape[1:])
        self._pictures = np.cumsum([0, *(len(shard["written"]) for shard in shards)])
        self._texts = np.cumsum([0, *(len(shard["texts"]) for shard in shards)])
        ends = [shard["text_ends"] + start for shard, start in zip(shards, self._texts, strict=False)]
        self.text_starts: NDArray[np.int64] = np.concatenate([np.zeros(1, dtype=np.int64), *ends])
        self.written: NDArray[np.int32] = np.concatenate([shard["written"] for shard in shards])
        self._captions = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.written)])

    def __len__(self) -> int:
        return int(self._pictures[-1])

    @property
    def has_alternatives(self) -> bool:
        """Whether the likeliest tokens of the written captions were kept."""
        return all("top_ids" in shard for shard in self._shards)

    def images(self, rows: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the embeddings `(B, D)` of one view each."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for shard, here, inside in self._split(rows, self._pictures):
            out[here] = unpack_vectors(shard, "images", (inside, views[here]))
        return out

    def params(self, rows: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the parameters `(B, 7)` of one view each."""
        out = np.empty((len(rows), self._shards[0]["params"].shape[2]), dtype=np.float32)
        for shard, here, inside in self._split(rows, self._pictures):
            out[here] = shard["params"][inside, views[here]]
        return out

    def texts(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the embeddings `(B, D)` of the texts at `rows`, counted over the whole data set."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for shard, here, inside in self._split(rows, self._texts):
            out[here] = unpack_vectors(shard, "texts", (inside,))
        return out

    def captions(self, row: int) -> tuple[str, ...]:
        """Return what the captioning teacher wrote about one picture, the likeliest first."""
        shard, first = self._place(row)
        ends = shard["utf8_ends"]
        out = []
        for index in range(first, first + int(self.written[row])):
            start = int(ends[index - 1]) if index else 0
            out.append(shard["utf8"][start : int(ends[index])].tobytes().decode("utf-8"))
        return tuple(out)

    def logprobs(self, row: int) -> NDArray[np.float32]:
        """Return the log-probabilities of `captions(row)`."""
        shard, first = self._place(row)
        return np.asarray(shard["logprobs"][first : first + int(self.written[row])])

    def alternatives(self, rows: NDArray[np.intp], which: NDArray[np.intp]) -> tuple[NDArray[np.int32], Alternatives]:
        """Return the captioner's ids `(B, L)` of caption `which[b]` of picture `rows[b]`, and its alternatives.

        L is the longest of these captions; ids are padded with -1, log-probabilities of padding are 0.
        """
        found = []
        for row, caption in zip(rows.tolist(), which.tolist(), strict=True):
            shard, first = self._place(row)
            at = first + caption
            found.append((shard["caption_ids"][at], shard["top_ids"][at], shard["top_logprobs"][at]))
        length = max(int((ids >= 0).sum()) for ids, _, _ in found)
        k = found[0][1].shape[1]
        ids = np.full((len(found), length), -1, dtype=np.int32)
        top = np.zeros((len(found), length, k), dtype=np.int32)
        logprobs = np.zeros((len(found), length, k), dtype=np.float32)
        for index, (one, likeliest, scores) in enumerate(found):
            count = min(length, len(one))
            ids[index, :count], top[index, :count] = one[:count], likeliest[:count]
            logprobs[index, :count] = scores[:count]
        return ids, (top, logprobs)

    def _place(self, row: int) -> tuple[dict[str, NDArray[Any]], int]:
        """Return the shard of picture `row`, and which of its written captions is the picture's first."""
        shard = int(np.searchsorted(self._pictures, row, side="right")) - 1
        return self._shards[shard], int(self._captions[row] - self._captions[self._pictures[shard]])

    def _split(
        self, rows: NDArray[np.intp], borders: NDArray[np.int64]
    ) -> "list[tuple[dict[str, NDArray[Any]], NDArray[np.intp], NDArray[np.intp]]]":
        """Return for each shard that is touched: it, which of `rows` lie in it, and where inside."""
        shards = np.searchsorted(borders, rows, side="right") - 1
        return [
            (self._shards[shard], here, rows[here] - borders[shard])
            for shard in np.unique(shards).tolist()
            for here in (np.flatnonzero(shards == shard),)
        ]


def read_reinforced(paths: Sequence[Path]) -> Reinforced:
    """Return the shards `paths` as one data set.

    Raises:
        DataError: there is none, one is missing or damaged, or they do not belong together.
    """
    shards = [open_shard(path) for path in paths]
    whole = all(shard.keys() >= _NEEDED for shard in shards)
    shapes = {(shard["images"].shape[1:], tuple(sorted(shard))) for shard in shards} if whole else set()
    if len(shapes) != 1:
        raise DataError(
            f"{len(paths)} shards",
            expected=f"at least one, all with the same arrays and sizes, {', '.join(sorted(_NEEDED))} among them",
            found=f"{len(shapes)} kinds of them" if whole else "one without some of these arrays",
            remedy="Run `pocketlens distill reinforce` again; finished shards are kept.",
        )
    return Reinforced(shards)
