"""Pictures to vectors at the speed of the machine: several threads decode, resize and run the graph side by side.

Measured on two cores with a phone-size tower (docs/throughput.md): threads that each do both steps, on one
session of one thread, beat decoders with a separate thread for the graph, a session of two threads,
and processes.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from hashlib import sha256
from time import perf_counter
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.events import EmbeddingServed, EventSink, PictureRefused
from pocketlens.core.preprocess import Picture, PreprocessSpec, read_bytes
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.picture_worker import PictureReader
from pocketlens.runtime.pipeline import overlapped
from pocketlens.runtime.results import ReadEmbedding, Refusal

__all__ = ["ImageEmbedding"]

_Item = TypeVar("_Item")


class _InHand(NamedTuple):
    """A picture that was read in the caller's thread."""

    outcome: NDArray[np.uint8] | PictureError


class _Ready(NamedTuple):
    outcome: NDArray[np.uint8] | Refusal
    sha256: str | None


class ImageEmbedding:
    """The overlapped way from pictures to vectors; the face is `Lens.embed_images` and `Lens.embed_read`.

    Args:
        embedder: runs the image encoder.
        spec: the bundle's.
        model_version: for the events.
        reader: turns pictures into pixels; safe for threads.
        sink: told in the thread that reads the results, and in their order; it need not be safe for threads.
    """

    def __init__(
        self, embedder: Embedder, spec: PreprocessSpec, model_version: str, sink: EventSink, reader: PictureReader
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._model_version = model_version
        self._sink = sink
        self._reader = reader

    def pictures(
        self, pictures: Iterable[Picture], *, batch_size: int, threads: int, max_pixels: int | None
    ) -> Iterator[NDArray[np.float32] | Refusal]:
        """Yield a vector or a refusal for each picture; see `Lens.embed_images`."""
        spec = self._limited(max_pixels)
        given = pictures if threads == 1 else (self._in_hand(picture, spec) for picture in pictures)
        results = self._results(
            given, lambda index, picture: _Ready(self._pixels(index, picture, spec), None), batch_size, threads
        )
        return _outcomes(results)

    def read(
        self,
        items: Iterable[_Item],
        read: Callable[[_Item], bytes],
        *,
        batch_size: int,
        threads: int,
        max_pixels: int | None,
    ) -> Generator[ReadEmbedding]:
        """Yield a result for each item, whose bytes are read by the threads; see `Lens.embed_read`."""
        spec = self._limited(max_pixels)

        def prepare(index: int, item: _Item) -> _Ready:
            digest = None
            try:
                data = read(item)
                digest = sha256(data).hexdigest()
                return _Ready(self._reader.prepare(data, spec), digest)
            except PictureError as error:
                return _Ready(Refusal(index, error.what, error), digest)

        return self._results(items, prepare, batch_size, threads)

    def _limited(self, max_pixels: int | None) -> PreprocessSpec:
        return self._spec if max_pixels is None else msgspec.structs.replace(self._spec, max_pixels=max_pixels)

    def _results(
        self, items: Iterable[_Item], prepare: Callable[[int, _Item], _Ready], batch_size: int, threads: int
    ) -> Generator[ReadEmbedding]:
        batches = overlapped(
            items,
            prepare,
            lambda batch: self._embed(batch, in_parallel=threads > 1),
            batch_size=batch_size,
            threads=threads,
        )
        return self._reported(batches)

    def _embed(self, batch: list[_Ready], *, in_parallel: bool) -> tuple[list[ReadEmbedding], float]:
        """Return the results of a batch in its order, and the milliseconds that the graph took."""
        started = perf_counter()
        good = [item.outcome for item in batch if not isinstance(item.outcome, Refusal)]
        vectors = iter(self._embedder.images(np.stack(good), in_parallel=in_parallel)[0] if good else ())
        results = [
            ReadEmbedding(item.outcome if isinstance(item.outcome, Refusal) else next(vectors), item.sha256)
            for item in batch
        ]
        return results, (perf_counter() - started) * 1000

    def _reported(self, batches: Generator[tuple[list[ReadEmbedding], float]]) -> Generator[ReadEmbedding]:
        with closing(batches):  # stops the threads when this generator is closed, not when it is collected
            for results, batch_ms in batches:
                refused = [item.outcome for item in results if isinstance(item.outcome, Refusal)]
                for refusal in refused:
                    self._sink.emit(PictureRefused(self._model_version, refusal.error.kind))
                if len(refused) < len(results):
                    count = len(results) - len(refused)
                    self._sink.emit(EmbeddingServed(self._model_version, "image", count, batch_ms))
                yield from results

    def _in_hand(self, picture: Picture, spec: PreprocessSpec) -> Picture | _InHand:
        """Return what threads may take their time with: nothing that the caller may change or close meanwhile."""
        if isinstance(picture, (str, os.PathLike, bytes)):
            return picture
        try:
            if isinstance(picture, (Image.Image, np.ndarray)):
                return _InHand(self._reader.prepare(picture, spec))
            return read_bytes(picture, max_bytes=spec.max_bytes)
        except PictureError as error:
            return _InHand(error)

    def _pixels(self, index: int, picture: Picture | _InHand, spec: PreprocessSpec) -> NDArray[np.uint8] | Refusal:
        try:
            if not isinstance(picture, _InHand):
                return self._reader.prepare(picture, spec)
            if isinstance(picture.outcome, PictureError):
                raise picture.outcome
            return picture.outcome
        except PictureError as error:
            return Refusal(index, error.what, error)


def _outcomes(results: Generator[ReadEmbedding]) -> Generator[NDArray[np.float32] | Refusal]:
    with closing(results):
        for result in results:
            yield result.outcome
