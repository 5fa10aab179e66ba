"""Pictures to captions, batch by batch: one pass of the encoder, the decoder, the fallback, and an event for each."""

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.captions import Caption, CaptionFallback
from pocketlens.core.errors import PictureError
from pocketlens.core.events import CaptionServed, EmbeddingServed, EventSink, PictureRefused
from pocketlens.core.preprocess import Picture, PreprocessSpec, read_bytes
from pocketlens.runtime.captioner import Captioner
from pocketlens.runtime.decoding import Decoding, Nucleus
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.picture_worker import PictureReader
from pocketlens.runtime.results import CaptionPiece, Description, Refusal

__all__ = ["ImageCaptioning"]


class _Prepared(NamedTuple):
    pixels: NDArray[np.uint8]
    encoded: bytes | None  # kept only for a fallback


class ImageCaptioning:
    """The way from pictures to captions; the face is `Lens.captions`, `Lens.descriptions` and `Lens.caption_streams`.

    Args:
        captioner: writes the captions of encoded pictures.
        embedder: runs the image encoder.
        spec: the bundle's.
        model_version: for the events.
        sink: told of every caption, embedded batch and refused picture.
        reader: turns pictures into pixels.
        fallback: asked after each device caption of an encoded picture.
    """

    def __init__(
        self,
        captioner: Captioner,
        embedder: Embedder,
        spec: PreprocessSpec,
        model_version: str,
        sink: EventSink,
        reader: PictureReader,
        fallback: CaptionFallback | None,
    ) -> None:
        self._captioner = captioner
        self._embedder = embedder
        self._spec = spec
        self._model_version = model_version
        self._sink = sink
        self._reader = reader
        self._fallback = fallback

    def check(self, decoding: Decoding) -> None:
        """Raise the `ValueError` of options that do not fit this bundle, before there is a picture."""
        self._captioner.limits(decoding)

    def descriptions(
        self, pictures: Iterable[Picture], *, decoding: Decoding, batch_size: int, embeddings_asked: bool
    ) -> Iterator[Description | Refusal]:
        """Yield a description or a refusal for each picture; see `Lens.descriptions`.

        Args:
            pictures: any number of them.
            decoding: checked by `check`.
            batch_size: pictures of one call of the graphs, at least 1.
            embeddings_asked: whether the embeddings are handed out, so that an event tells of them.
        """
        for batch in self._batches(pictures, batch_size):
            yield from self._described(batch, decoding, embeddings_asked=embeddings_asked)

    def streams(
        self, pictures: Iterable[Picture], *, decoding: Decoding, batch_size: int
    ) -> Iterator[CaptionPiece | Refusal]:
        """Yield the pieces of each picture's caption, or its refusal; see `Lens.caption_streams`."""
        first = 0
        for batch in self._batches(pictures, batch_size):
            started = perf_counter()
            yield from (item for item in batch if isinstance(item, Refusal))
            good = {first + at: item for at, item in enumerate(batch) if isinstance(item, _Prepared)}
            first += len(batch)
            if not good:
                continue
            items, indices = list(good.values()), list(good)
            embeddings, visual = self._embedder.images(np.stack([item.pixels for item in items]))
            keys = _keys(items, decoding)
            for row, text, written in self._captioner.pieces(embeddings, visual, decoding=decoding, keys=keys):
                # What the reader of this generator does between two pieces counts too: the caption waits for it.
                device_ms = (perf_counter() - started) * 1000
                served = None if written is None else self._served(items[row], written, device_ms)
                yield CaptionPiece(indices[row], text, served)

    def _described(
        self, batch: list[_Prepared | Refusal], decoding: Decoding, *, embeddings_asked: bool
    ) -> Iterator[Description | Refusal]:
        good = [item for item in batch if isinstance(item, _Prepared)]
        answers: Iterator[Description] = iter(())
        if good:
            started = perf_counter()
            embeddings, visual = self._embedder.images(np.stack([item.pixels for item in good]))
            if embeddings_asked:
                batch_ms = (perf_counter() - started) * 1000
                self._sink.emit(EmbeddingServed(self._model_version, "image", len(good), batch_ms))
            captions = self._captioner.captions(embeddings, visual, decoding=decoding, keys=_keys(good, decoding))
            share_ms = (perf_counter() - started) * 1000 / len(good)
            answers = (
                Description(vector, self._served(item, caption, share_ms))
                for item, vector, caption in zip(good, embeddings, captions, strict=True)
            )
        for item in batch:
            yield item if isinstance(item, Refusal) else next(answers)

    def _served(self, item: _Prepared, caption: Caption, device_ms: float) -> Caption:
        """Ask the fallback, report, and return the caption to hand out."""
        started = perf_counter()
        if self._fallback is not None and item.encoded is not None:
            caption = self._fallback(item.encoded, caption)
        caption_ms = device_ms + (perf_counter() - started) * 1000
        tokens = len(caption.token_ids)
        self._sink.emit(CaptionServed(self._model_version, caption.source, caption.confidence, tokens, caption_ms))
        return caption

    def _batches(self, pictures: Iterable[Picture], batch_size: int) -> Iterator[list[_Prepared | Refusal]]:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        batch: list[_Prepared | Refusal] = []
        for index, picture in enumerate(pictures):
            # Prepared one by one: of a batch, only the small pixels are held, not the files.
            batch.append(self._prepared(index, picture))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _prepared(self, index: int, picture: Picture) -> _Prepared | Refusal:
        try:
            if self._fallback is None or isinstance(picture, (Image.Image, np.ndarray)):
                return _Prepared(self._reader.prepare(picture, self._spec), None)
            # Read once: the fallback gets the very bytes that the device captioned.
            encoded = read_bytes(picture, max_bytes=self._spec.max_bytes)
            try:
                return _Prepared(self._reader.prepare(encoded, self._spec), encoded)
            except PictureError as error:
                if isinstance(picture, (str, os.PathLike)):
                    error.what = os.fsdecode(picture)
                raise
        except PictureError as error:
            self._sink.emit(PictureRefused(self._model_version, error.kind))
            return Refusal(index, error.what, error)


def _keys(items: Sequence[_Prepared], decoding: Decoding) -> list[int]:
    """Return what random draws of each picture depend on: its own pixels, so not its place in a batch or a folder."""
    if not isinstance(decoding.search, Nucleus):
        return [0] * len(items)
    digests = (blake2b(item.pixels.tobytes(), digest_size=8).digest() for item in items)
    return [int.from_bytes(digest, "little") for digest in digests]
