"""The face of the runtime: a verified bundle that embeds and captions pictures, offline."""

import os
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.captions import Caption, CaptionFallback
from pocketlens.core.errors import BundleIncomplete, PictureError
from pocketlens.core.events import (
    NULL_SINK,
    CaptionServed,
    EmbeddingServed,
    EngineLoaded,
    EventSink,
    PictureRefused,
)
from pocketlens.core.preprocess import Picture, preprocess, read_bytes
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime.captioner import Captioner
from pocketlens.runtime.confidence import check_confidence
from pocketlens.runtime.decoding import Limits
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.engines import Engine, open_engine
from pocketlens.runtime.engines.engine import engine_name
from pocketlens.runtime.results import Description, Refusal
from pocketlens.runtime.selection import choose_graphs

__all__ = ["Lens", "load"]

_T = TypeVar("_T")


def load(
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    sink: EventSink = NULL_SINK,
    fallback: CaptionFallback | None = None,
) -> "Lens":
    """Return the bundle at `path`, verified and ready to use.

    Args:
        path: the bundle's folder.
        engine: `onnxruntime` (the default) or `executorch`.
        precision: `fp32`, `int8`, ... as the bundle names them; by default the preferred one that was
            measured fastest at export.
        threads: CPU threads of one call, at least 1; by default one for each physical core.
        sink: takes the events of this lens.
        fallback: asked after each device caption of an encoded picture.

    Raises:
        BundleError: the bundle is missing, damaged, too new, or lacks what was asked for.
        EngineError: no such engine, or its package is not installed.
    """
    started = perf_counter()
    name = engine_name(engine)
    bundle = load_bundle(path)
    graphs = choose_graphs(bundle, engine=name, precision=precision)
    check_confidence(bundle.manifest.confidence)
    tokenizer = Tokenizer.from_file(bundle.tokenizer_path, text_length=bundle.manifest.tokenizer.text_length)
    opened = open_engine(name, bundle, graphs, threads=threads)
    lens = Lens(
        bundle,
        opened,
        tokenizer,
        precision=graphs["image_encoder"].precision,
        sink=sink,
        fallback=fallback,
    )
    load_ms = (perf_counter() - started) * 1000
    sink.emit(EngineLoaded(lens.model_version, name, lens.precision, load_ms))
    return lens


class _Prepared(NamedTuple):
    pixels: NDArray[np.uint8]
    encoded: bytes | None  # kept only for a fallback


class Lens:
    """Embeds pictures and texts into one space, and captions pictures. Made by `load`.

    A picture is a path, an encoded file as bytes or as a binary file, a PIL image, or uint8
    `(H, W, 3)`; see `pocketlens.core.preprocess.Picture`. The plural methods are generators that
    hold one batch at a time, keep the order, and give a `Refusal` in the place of a bad picture; the
    singular ones raise its `PictureError`.

    Attributes:
        bundle: the verified bundle.
        model_version: version of the model; vectors of two versions must not be compared.
        dim: D, the length of an embedding.
        precision: precision of the image encoder that was chosen.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        precision: str,
        sink: EventSink = NULL_SINK,
        fallback: CaptionFallback | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.model_version = manifest.model_version
        self.dim = manifest.embedding.dim
        self.precision = precision
        self._spec = manifest.preprocess
        self._sink = sink
        self._fallback = fallback
        self._embedder = Embedder(engine, tokenizer, dim=self.dim)
        self._captioner: Captioner | None = None
        if manifest.caption is not None and self.captions_pictures:
            self._captioner = Captioner(
                engine,
                tokenizer,
                manifest.caption,
                confidence=manifest.confidence,
                model_version=self.model_version,
                embedder=self._embedder if "embed" in manifest.tasks else None,
            )

    @property
    def captions_pictures(self) -> bool:
        """Whether this bundle can caption; all bundles can embed pictures."""
        return "caption" in self.bundle.manifest.tasks

    def embed_image(self, picture: Picture) -> NDArray[np.float32]:
        """Return the embedding of one picture: `(D,)` float32, unit norm.

        Raises:
            PictureError: the picture was refused.
            EngineError: the graph failed.
        """
        return _single(self.embed_images([picture], batch_size=1))

    def embed_images(
        self, pictures: Iterable[Picture], *, batch_size: int = 16
    ) -> Iterator[NDArray[np.float32] | Refusal]:
        """Yield, for each picture in order, its embedding `(D,)` or a `Refusal`.

        Raises:
            EngineError: the graph failed.
        """
        for batch in self._batches(pictures, batch_size):
            good = [item for item in batch if isinstance(item, _Prepared)]
            vectors: Iterator[NDArray[np.float32]] = iter(())
            if good:
                started = perf_counter()
                embeddings, _ = self._embedder.images(np.stack([item.pixels for item in good]))
                self._embedded("image", len(good), started)
                vectors = iter(embeddings)
            for item in batch:
                yield item if isinstance(item, Refusal) else next(vectors)

    def embed_text(self, text: str) -> NDArray[np.float32]:
        """Return the embedding of one text: `(D,)` float32, unit norm; see `embed_texts`."""
        vector: NDArray[np.float32] = self.embed_texts([text])[0]
        return vector

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of `texts`: `(N, D)` float32, rows of unit norm.

        A text that is longer than the text encoder's input is cut off there.

        Raises:
            BundleIncomplete: the bundle has no text encoder.
            EngineError: the graph failed.
        """
        started = perf_counter()
        vectors = self._embedder.texts(texts)
        self._embedded("text", len(texts), started)
        return vectors

    def caption(self, picture: Picture, *, beam: int = 1, max_tokens: int | None = None) -> Caption:
        """Return the caption of one picture.

        Args:
            picture: the picture.
            beam: hypotheses of beam search; 1 is greedy.
            max_tokens: the most ids of the caption; by default, and at most, what the bundle allows.

        Raises:
            PictureError: the picture was refused.
            BundleIncomplete: the bundle cannot caption.
            EngineError: a graph failed.
        """
        return _single(self.captions([picture], beam=beam, max_tokens=max_tokens, batch_size=1))

    def captions(
        self,
        pictures: Iterable[Picture],
        *,
        beam: int = 1,
        max_tokens: int | None = None,
        batch_size: int = 16,
    ) -> Iterator[Caption | Refusal]:
        """Yield, for each picture in order, its caption or a `Refusal`; arguments as in `caption`."""
        captioner, limits = self._caption_plan(beam, max_tokens)
        return (
            item if isinstance(item, Refusal) else item.caption
            for batch in self._batches(pictures, batch_size)
            for item in self._describe(batch, captioner, beam, limits, embeddings_asked=False)
        )

    def describe(self, picture: Picture, *, beam: int = 1, max_tokens: int | None = None) -> Description:
        """Return embedding and caption of one picture from one encoder pass; errors as in `caption`."""
        return _single(self.descriptions([picture], beam=beam, max_tokens=max_tokens, batch_size=1))

    def descriptions(
        self,
        pictures: Iterable[Picture],
        *,
        beam: int = 1,
        max_tokens: int | None = None,
        batch_size: int = 16,
    ) -> Iterator[Description | Refusal]:
        """Yield, for each picture in order, its `Description` or a `Refusal`."""
        captioner, limits = self._caption_plan(beam, max_tokens)
        return (
            item
            for batch in self._batches(pictures, batch_size)
            for item in self._describe(batch, captioner, beam, limits, embeddings_asked=True)
        )

    def _caption_plan(self, beam: int, max_tokens: int | None) -> tuple[Captioner, Limits]:
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, found {beam}")
        if self._captioner is None:
            raise BundleIncomplete(
                f"bundle {self.bundle.root}",
                expected="a bundle with the task caption",
                found=f"tasks: {', '.join(self.bundle.manifest.tasks)}",
                remedy="Take a bundle that was exported with captions.",
            )
        return self._captioner, self._captioner.limits(max_tokens)

    def _describe(
        self,
        batch: "list[_Prepared | Refusal]",
        captioner: Captioner,
        beam: int,
        limits: Limits,
        *,
        embeddings_asked: bool,
    ) -> Iterator[Description | Refusal]:
        good = [item for item in batch if isinstance(item, _Prepared)]
        answers: Iterator[Description] = iter(())
        if good:
            started = perf_counter()
            embeddings, visual = self._embedder.images(np.stack([item.pixels for item in good]))
            if embeddings_asked:
                self._embedded("image", len(good), started)
            captions = captioner.captions(embeddings, visual, beam=beam, limits=limits)
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
        self._sink.emit(CaptionServed(self.model_version, caption.source, caption.confidence, tokens, caption_ms))
        return caption

    def _embedded(self, modality: str, count: int, started: float) -> None:
        batch_ms = (perf_counter() - started) * 1000
        self._sink.emit(EmbeddingServed(self.model_version, modality, count, batch_ms))

    def _batches(self, pictures: Iterable[Picture], batch_size: int) -> "Iterator[list[_Prepared | Refusal]]":
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        batch: list[_Prepared | Refusal] = []
        for index, picture in enumerate(pictures):
            # Prepared one by one: of a batch, only the small pixels are held, not the files.
            batch.append(self._prepare(index, picture))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _prepare(self, index: int, picture: Picture) -> _Prepared | Refusal:
        try:
            if self._fallback is None or isinstance(picture, (Image.Image, np.ndarray)):
                return _Prepared(preprocess(picture, self._spec), None)
            # Read once: the fallback gets the very bytes that the device captioned.
            encoded = read_bytes(picture, max_bytes=self._spec.max_bytes)
            try:
                return _Prepared(preprocess(encoded, self._spec), encoded)
            except PictureError as error:
                if isinstance(picture, (str, os.PathLike)):
                    error.what = os.fsdecode(picture)
                raise
        except PictureError as error:
            self._sink.emit(PictureRefused(self.model_version, error.kind))
            return Refusal(index, error.what, error)


def _single(results: Iterator[_T | Refusal]) -> _T:
    """Return the only result, or raise the error of its refusal."""
    result = next(results)
    if isinstance(result, Refusal):
        raise result.error
    return result
