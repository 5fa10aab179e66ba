"""The face of the runtime: a verified bundle that embeds and captions pictures, offline."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.captions import Caption, CaptionFallback
from pocketlens.core.errors import BundleIncomplete
from pocketlens.core.events import NULL_SINK, EmbeddingServed, EngineLoaded, EventSink
from pocketlens.core.preprocess import Picture
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime.captioner import Captioner
from pocketlens.runtime.confidence import check_confidence
from pocketlens.runtime.decoding import GREEDY, Beam, Decoding, Greedy
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.engines import Engine
from pocketlens.runtime.engines.fallback import FallbackEngine
from pocketlens.runtime.engines.specs import EngineSpec
from pocketlens.runtime.image_captioning import ImageCaptioning
from pocketlens.runtime.image_embedding import ImageEmbedding
from pocketlens.runtime.picture_worker import InProcess, PictureReader, picture_reader
from pocketlens.runtime.pipeline import available_cores
from pocketlens.runtime.results import CaptionPiece, Description, ReadEmbedding, Refusal
from pocketlens.runtime.selection import Plan, plan_engines

__all__ = ["Lens", "load"]

_T = TypeVar("_T")
_Item = TypeVar("_Item")

_SIDE_BY_SIDE = EngineSpec("onnxruntime")


def load(
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tuned: bool = True,
    decode: Literal["in_process", "worker"] = "in_process",
    sink: EventSink = NULL_SINK,
    fallback: CaptionFallback | None = None,
) -> "Lens":
    """Return the bundle at `path`, verified and ready to use.

    Args:
        path: the bundle's folder.
        engine: `onnxruntime`, `onnxruntime:cuda`, `executorch`, ...: see `runtime.engines.specs`. Several,
            joined by commas, are used in that order, each one where those before it fail. By default
            what `pocketlens tune` measured fastest on this device; where it was not run, ONNX Runtime on
            the CPU, and other engines only where that fails.
        precision: `fp32`, `int8`, ... as the bundle names them; by default what `pocketlens tune`
            measured fastest, or the preferred one that was measured fastest at export.
        threads: CPU threads, at least 1: of one call, by default what `pocketlens tune` found best, or one
            for each physical core; and of `Lens.embed_images`, by default one for each core that this
            process may use.
        tuned: whether a measurement of `pocketlens tune` is used where there is one.
        decode: `in_process`, or `worker` for pictures of unknown origin: they are decoded in other processes with
            limits of memory and time (docs/pictures.md). `Lens.close` ends these.
        sink: takes the events of this lens.
        fallback: asked after each device caption of an encoded picture.

    Raises:
        BundleError: the bundle is missing, damaged, too new, or lacks what was asked for.
        EngineError: no such engine, or its package is not installed.
    """
    started = perf_counter()
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    bundle = load_bundle(path)
    plan = plan_engines(bundle, engine=engine, precision=precision, threads=threads, tuned=tuned)
    check_confidence(bundle.manifest.confidence)
    tokenizer = Tokenizer.from_file(bundle.tokenizer_path, text_length=bundle.manifest.tokenizer.text_length)
    opened = FallbackEngine(bundle, plan.chains, sink=sink)
    opened.open()
    lens = Lens(
        bundle,
        opened,
        tokenizer,
        precision=opened.current("image_encoder").record.precision,
        plan=plan,
        sink=sink,
        fallback=fallback,
        threads=threads,
        reader=picture_reader(decode, workers=threads),
    )
    load_ms = (perf_counter() - started) * 1000
    sink.emit(EngineLoaded(lens.model_version, opened.name, lens.precision, load_ms, plan.chosen_by))
    return lens


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
        plan: how each role is run, what follows if that fails, and what decided it (`plan.chosen_by`);
            `None` for a lens that was given its engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        precision: str,
        plan: Plan | None = None,
        sink: EventSink = NULL_SINK,
        fallback: CaptionFallback | None = None,
        threads: int | None = None,
        reader: PictureReader | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.model_version = manifest.model_version
        self.dim = manifest.embedding.dim
        self.precision = precision
        self.plan = plan
        self._spec = manifest.preprocess
        self._sink = sink
        self._threads = threads or available_cores()
        self._reader: PictureReader = reader or InProcess()
        self._embedder = Embedder(engine, tokenizer, dim=self.dim, parallel=self._parallel_engine(plan))
        self._images = ImageEmbedding(self._embedder, self._spec, self.model_version, sink, self._reader)
        self._captions: ImageCaptioning | None = None
        if manifest.caption is not None and self.captions_pictures:
            captioner = Captioner(
                engine,
                tokenizer,
                manifest.caption,
                confidence=manifest.confidence,
                model_version=self.model_version,
                embedder=self._embedder if "embed" in manifest.tasks else None,
            )
            self._captions = ImageCaptioning(
                captioner, self._embedder, self._spec, self.model_version, sink, self._reader, fallback
            )

    @property
    def captions_pictures(self) -> bool:
        """Whether this bundle can caption; all bundles can embed pictures."""
        return "caption" in self.bundle.manifest.tasks

    def close(self) -> None:
        """End decoding processes, where there are any. What the lens did in this process needs no closing."""
        self._reader.close()

    def embed_image(self, picture: Picture) -> NDArray[np.float32]:
        """Return the embedding of one picture: `(D,)` float32, unit norm.

        Raises:
            PictureError: the picture was refused.
            EngineError: the graph failed.
        """
        return _single(self.embed_images([picture], batch_size=1, threads=1))

    def embed_images(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 4,
        threads: int | None = None,
        max_pixels: int | None = None,
    ) -> Iterator[NDArray[np.float32] | Refusal]:
        """Yield, for each picture in order, its embedding `(D,)` or a `Refusal`.

        Several threads decode, resize and run the graph side by side. `pictures` is read in the caller's
        thread, up to `threads` + 1 batches ahead; memory does not grow with their number, and it may
        be endless. Files named by a path, and bytes, are decoded by the threads; an open file, a PIL
        image or an array is read before the next one is asked for, so that it may be used again.
        Closing the generator stops the threads. With one thread all is done in the caller's, and nothing
        is read ahead of the batch.

        Args:
            pictures: any number of them.
            batch_size: pictures of one call of the graph, at least 1.
            threads: how many work, at least 1; by default those of the lens.
            max_pixels: refuse pictures of more pixels than this, instead of what the bundle says.

        Raises:
            EngineError: the graph failed.
            ValueError: an argument is out of range.
        """
        return self._images.pictures(
            pictures, batch_size=batch_size, threads=self._count(threads), max_pixels=max_pixels
        )

    def embed_read(
        self,
        items: Iterable[_Item],
        read: Callable[[_Item], bytes],
        *,
        batch_size: int = 4,
        threads: int | None = None,
        max_pixels: int | None = None,
    ) -> Generator[ReadEmbedding]:
        """Yield, for each item in order, its embedding or a `Refusal`, and the SHA-256 of its bytes.

        As `embed_images`, but the threads get the bytes too: by `read`, which must be safe to call from
        several threads and may raise `PictureError`.
        """
        return self._images.read(
            items, read, batch_size=batch_size, threads=self._count(threads), max_pixels=max_pixels
        )

    def _count(self, threads: int | None) -> int:
        return self._threads if threads is None else threads

    def _parallel_engine(self, plan: Plan | None) -> Callable[[], Engine] | None:
        """Return what opens the image encoder for calls side by side: one thread each, as the callers are many."""
        if plan is None or plan.first("image_encoder").spec != _SIDE_BY_SIDE:
            return None  # other engines have one set of threads for the whole process, or hardware of their own
        chain = [
            msgspec.structs.replace(choice, threads=1) if choice.spec == _SIDE_BY_SIDE else choice
            for choice in plan.chains["image_encoder"]
        ]
        return lambda: FallbackEngine(self.bundle, {"image_encoder": chain}, sink=self._sink)

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
        batch_ms = (perf_counter() - started) * 1000
        self._sink.emit(EmbeddingServed(self.model_version, "text", len(texts), batch_ms))
        return vectors

    def caption(
        self, picture: Picture, *, beam: int = 1, max_tokens: int | None = None, decoding: Decoding | None = None
    ) -> Caption:
        """Return the caption of one picture.

        Args:
            picture: the picture.
            beam: short for `decoding=Decoding(search=Beam(width=beam))`; 1 is greedy.
            max_tokens: short for `decoding=Decoding(max_tokens=...)`.
            decoding: how captions are decoded; by default greedily. Not together with the short forms.

        Raises:
            PictureError: the picture was refused.
            BundleIncomplete: the bundle cannot caption.
            EngineError: a graph failed.
            ValueError: the options contradict each other, or the prompt leaves no room for a caption.
        """
        return _single(
            self.captions([picture], beam=beam, max_tokens=max_tokens, decoding=decoding, batch_size=1),
        )

    def captions(
        self,
        pictures: Iterable[Picture],
        *,
        beam: int = 1,
        max_tokens: int | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 16,
    ) -> Iterator[Caption | Refusal]:
        """Yield, for each picture in order, its caption or a `Refusal`; arguments as in `caption`."""
        captions, plan = self._caption_plan(beam, max_tokens, decoding)
        described = captions.descriptions(pictures, decoding=plan, batch_size=batch_size, embeddings_asked=False)
        return (item if isinstance(item, Refusal) else item.caption for item in described)

    def caption_stream(self, picture: Picture, *, decoding: Decoding = GREEDY) -> Iterator[CaptionPiece]:
        """Yield the caption of one picture as it grows; the last piece has the whole caption.

        Args:
            picture: the picture.
            decoding: how; one caption, and not from a beam, which has no partial text.

        Raises:
            ValueError: a beam or several captions; otherwise as in `caption`.
        """
        for item in self.caption_streams([picture], decoding=decoding, batch_size=1):
            if isinstance(item, Refusal):
                raise item.error
            yield item

    def caption_streams(
        self, pictures: Iterable[Picture], *, decoding: Decoding = GREEDY, batch_size: int = 16
    ) -> Iterator[CaptionPiece | Refusal]:
        """Yield the captions of many pictures as they grow, those of a batch side by side.

        `CaptionPiece.index` and `Refusal.index` say whose piece it is. Every picture ends with a piece that has its
        caption, or is a `Refusal`; arguments and errors as in `caption_stream`.
        """
        captions, plan = self._caption_plan(1, None, decoding)
        if not plan.streams:
            raise ValueError("decoding: expected one caption, greedy or from a nucleus, found a beam or several")
        return captions.streams(pictures, decoding=plan, batch_size=batch_size)

    def describe(
        self, picture: Picture, *, beam: int = 1, max_tokens: int | None = None, decoding: Decoding | None = None
    ) -> Description:
        """Return embedding and caption of one picture from one encoder pass; errors as in `caption`."""
        return _single(
            self.descriptions([picture], beam=beam, max_tokens=max_tokens, decoding=decoding, batch_size=1),
        )

    def descriptions(
        self,
        pictures: Iterable[Picture],
        *,
        beam: int = 1,
        max_tokens: int | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 16,
    ) -> Iterator[Description | Refusal]:
        """Yield, for each picture in order, its `Description` or a `Refusal`."""
        captions, plan = self._caption_plan(beam, max_tokens, decoding)
        return captions.descriptions(pictures, decoding=plan, batch_size=batch_size, embeddings_asked=True)

    def _caption_plan(
        self, beam: int, max_tokens: int | None, decoding: Decoding | None
    ) -> tuple[ImageCaptioning, Decoding]:
        if decoding is None:
            decoding = Decoding(search=Greedy() if beam == 1 else Beam(width=beam), max_tokens=max_tokens)
        elif beam != 1 or max_tokens is not None:
            raise ValueError("beam, max_tokens: expected them inside decoding, found both ways of saying it")
        if self._captions is None:
            raise BundleIncomplete(
                f"bundle {self.bundle.root}",
                expected="a bundle with the task caption",
                found=f"tasks: {', '.join(self.bundle.manifest.tasks)}",
                remedy="Take a bundle that was exported with captions.",
            )
        self._captions.check(decoding)  # what does not fit this bundle is said before the first picture
        return self._captions, decoding


def _single(results: Iterator[_T | Refusal]) -> _T:
    """Return the only result, or raise the error of its refusal."""
    result = next(results)
    if isinstance(result, Refusal):
        raise result.error
    return result
