"""What is judged: teachers, the eager student and a bundle behind one protocol.

Letters: `N` pictures, `M` texts, `D` embedding. Each system preprocesses a picture file by its own spec.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.data.sample import PictureFile, as_source
from pocketlens.distill.pictures import batches
from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher
from pocketlens.runtime.decoding import Decoding
from pocketlens.runtime.results import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from pocketlens.distill.students.student import Student
    from pocketlens.runtime.lens import Lens

__all__ = ["Examined", "Judged", "JudgedCaption", "JudgedLens", "JudgedStudent", "JudgedTeachers", "Scores"]

Scores = dict[str, float]
"""Natural log-probability of each text, its end token left out."""

_PICTURES: Final = 32
_TEXTS: Final = 256


class JudgedCaption(msgspec.Struct, frozen=True):
    """One caption.

    Attributes:
        text: the caption.
        token_ids: its greedy ids, the end token included; none where the system has none.
        confidence: in [0, 1]; `None` where the system has none.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    confidence: float | None = None


class Judged(Protocol):
    """A system that can be evaluated. Memory does not grow with what one call is given.

    Attributes:
        name: the subject in reports and manifests: `teacher`, `student`, or `<target>-<precision>`.
        captions_pictures: whether `captions` may be called.
    """

    @property
    def name(self) -> str:
        """The subject in reports and manifests."""
        ...

    @property
    def captions_pictures(self) -> bool:
        """Whether `captions` may be called."""
        ...

    def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
        """Return `(N, D)` of unit norm.

        Raises:
            PictureError: a picture was refused.
        """
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(M, D)` of unit norm."""
        ...

    def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
        """Return one greedy caption a picture.

        Raises:
            PictureError: a picture was refused.
        """
        ...


class Examined(Judged, Protocol):
    """A system that can be examined in depth: see `pocketlens.distill.evaluation.examination`."""

    @property
    def embeds(self) -> bool:
        """Whether pictures and texts may be embedded."""
        ...

    @property
    def scores_texts(self) -> bool:
        """Whether `text_logprobs` may be called."""
        ...

    def text_logprobs(self, paths: Sequence[PictureFile], texts: Sequence[Sequence[str]]) -> list[Scores]:
        """Return, for each picture, how probable each of its `texts` is as its caption.

        A text that is longer than the captions of the system is NaN.

        Raises:
            PictureError: a picture was refused.
        """
        ...


class JudgedTeachers:
    """The teachers of a student, as one system.

    Args:
        embedder: embeds; `None` to judge a captioner alone.
        captioner: captions; `None` where the student has no captioning teacher.
        name: the subject in reports.
    """

    def __init__(
        self, embedder: EmbeddingTeacher | None, captioner: CaptioningTeacher | None = None, *, name: str = "teacher"
    ) -> None:
        self.name = name
        self.captions_pictures = captioner is not None
        self.embeds = embedder is not None
        self._embedder = embedder
        self._captioner = captioner

    def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
        """Return `(N, D)`; see `Judged`."""
        embedder = self._embeds()
        parts = [embedder.embed_images(pixels) for pixels in _decoded(paths, embedder.preprocess)]
        return _joined(parts, embedder.dim)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(M, D)`; see `Judged`."""
        embedder = self._embeds()
        parts = [embedder.embed_texts(texts[part]) for part in batches(len(texts), _TEXTS)]
        return _joined(parts, embedder.dim)

    def _embeds(self) -> EmbeddingTeacher:
        if self._embedder is None:
            raise ValueError("embeddings: there is no embedding teacher; ask `embeds` first")
        return self._embedder

    @property
    def scores_texts(self) -> bool:
        """Whether `text_logprobs` may be called: for captioners in Hugging Face's formats."""
        from pocketlens.distill.teachers.hf_captioner import ChatCaptioner, HfCaptioner

        return isinstance(self._captioner, ChatCaptioner | HfCaptioner)

    def text_logprobs(self, paths: Sequence[PictureFile], texts: Sequence[Sequence[str]]) -> list[Scores]:
        """Return the scores of each picture's texts; see `Examined`."""
        from pocketlens.distill.evaluation.forced import caption_logprobs
        from pocketlens.distill.teachers.hf_captioner import ChatCaptioner, HfCaptioner

        if not isinstance(self._captioner, ChatCaptioner | HfCaptioner):
            raise ValueError("scores: this captioner cannot score a text; ask `scores_texts` first")
        scores: list[Scores] = []
        for pixels in _decoded(paths, self._captioner.preprocess):
            scores += caption_logprobs(self._captioner, pixels, texts[len(scores) : len(scores) + len(pixels)])
        return scores

    def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
        """Return one caption a picture, without ids: teachers have their own vocabularies."""
        if self._captioner is None:
            raise ValueError("captions: there is no captioning teacher; ask `captions_pictures` first")
        return [
            JudgedCaption(caption.text)
            for pixels in _decoded(paths, self._captioner.preprocess)
            for caption in self._captioner.caption(pixels)
        ]


class JudgedStudent:
    """A student in eager torch, on the CPU: the reference for everything that is exported from it.

    It is put into eval mode for the length of each call and comes back in the mode that it was in.

    Args:
        student: the model.
        tokenizer: its tokenizer.
        name: the subject in reports.
    """

    captions_pictures = True
    embeds = True
    scores_texts = True

    def __init__(self, student: "Student", tokenizer: Tokenizer, *, name: str = "student") -> None:
        from pocketlens.distill.students.student import preprocess_spec

        self.name = name
        self._student = student
        self._tokenizer = tokenizer
        self._spec = preprocess_spec(student.config)
        self._dim = student.config.embed_dim

    def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
        """Return `(N, D)`; see `Judged`."""
        with _inference(self._student):
            parts = [self._look(pixels)[0].numpy() for pixels in _decoded(paths, self._spec)]
        return _joined(parts, self._dim)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(M, D)`; see `Judged`. A text longer than the text tower's input is cut off."""
        import torch

        with _inference(self._student):
            parts = [
                self._student.text_encoder(torch.from_numpy(self._tokenizer.encode_batch(texts[part]))).numpy()
                for part in batches(len(texts), _TEXTS)
            ]
        return _joined(parts, self._dim)

    def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
        """Return one greedy caption a picture with its ids; see `Judged`."""
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        with _inference(self._student):
            captions = [
                ids
                for pixels in _decoded(paths, self._spec)
                for ids in self._student.greedy(self._look(pixels)[1], bos_id=bos, eos_id=eos)
            ]
        return [JudgedCaption(self._tokenizer.decode(ids), tuple(ids)) for ids in captions]

    def text_logprobs(self, paths: Sequence[PictureFile], texts: Sequence[Sequence[str]]) -> list[Scores]:
        """Return the scores of each picture's texts; see `Examined`."""
        scores: list[Scores] = []
        with _inference(self._student):
            for pixels in _decoded(paths, self._spec):
                for visual in self._look(pixels)[1]:
                    group = texts[len(scores)]
                    scores.append({text: self._logprob(visual[None], text) for text in group})
        return scores

    def _logprob(self, visual: "Tensor", text: str) -> float:
        """Return the log-probability of `text` after `visual (1, V, E)`."""
        import torch

        ids = self._tokenizer.encode(text)
        if len(ids) > self._student.config.caption_tokens:
            return math.nan
        read = torch.tensor([[self._tokenizer.bos_id, *ids]], dtype=torch.int32)[:, : len(ids)]
        every = torch.log_softmax(self._student.caption_decoder(visual, read)[0], dim=-1)  # (L, vocab)
        return float(every[torch.arange(len(ids)), torch.tensor(ids)].sum())

    def _look(self, pixels: NDArray[np.uint8]) -> "tuple[Tensor, Tensor]":
        """Return embeddings `(B, D)` and visual tokens `(B, V, E)`."""
        import torch

        embeddings, tokens = self._student.image_encoder(torch.from_numpy(pixels))
        return embeddings, tokens


class JudgedLens:
    """A bundle through the runtime, whatever its engine and precision.

    Args:
        lens: an opened bundle, without a fallback: the device alone is judged.
        name: the subject in reports, `<target>-<precision>`.
        batch_size: pictures a call. A graph that quantizes activations on the fly takes one scale
            for the whole batch, so its last digits depend on this.
    """

    def __init__(self, lens: "Lens", *, name: str, batch_size: int = 16) -> None:
        self.name = name
        self.captions_pictures = lens.captions_pictures
        self.embeds = any(graph.role == "text_encoder" for graph in lens.bundle.manifest.graphs)
        self.scores_texts = lens.captions_pictures
        self._lens = lens
        self._batch_size = batch_size

    def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
        """Return `(N, D)`; see `Judged`."""
        vectors = []
        for vector in self._lens.embed_images(map(as_source, paths), batch_size=self._batch_size):
            if isinstance(vector, Refusal):
                raise vector.error
            vectors.append(vector[None])
        return _joined(vectors, self._lens.dim)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(M, D)`; see `Judged`.

        Raises:
            BundleIncomplete: the bundle has no text encoder.
        """
        return self._lens.embed_texts(texts)

    def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
        """Return one greedy caption a picture with its ids; see `Judged`.

        Raises:
            BundleIncomplete: the bundle cannot caption.
        """
        captions = []
        for caption in self._lens.captions(map(as_source, paths), batch_size=self._batch_size):
            if isinstance(caption, Refusal):
                raise caption.error
            captions.append(JudgedCaption(caption.text, caption.token_ids, caption.confidence))
        return captions

    def text_logprobs(self, paths: Sequence[PictureFile], texts: Sequence[Sequence[str]]) -> list[Scores]:
        """Return the scores of each picture's texts: each text is the prompt of a caption; see `Examined`.

        Raises:
            BundleIncomplete: the bundle cannot caption.
        """
        manifest = self._lens.bundle.manifest
        tokenizer = Tokenizer.from_file(self._lens.bundle.tokenizer_path, text_length=manifest.tokenizer.text_length)
        longest = manifest.caption.max_tokens if manifest.caption else 0
        scores: list[Scores] = [{} for _ in paths]
        for text in dict.fromkeys(text for group in texts for text in group):
            rows, count = [row for row, group in enumerate(texts) if text in group], len(tokenizer.encode(text))
            if count + 1 > longest:  # one more token is always decoded
                for row in rows:
                    scores[row][text] = math.nan
                continue
            pictures = [as_source(paths[row]) for row in rows]
            decoding = Decoding(prompt=text, max_tokens=count + 1)
            captions = self._lens.captions(pictures, decoding=decoding, batch_size=self._batch_size)
            for row, caption in zip(rows, captions, strict=True):
                if isinstance(caption, Refusal):
                    raise caption.error
                scores[row][text] = math.fsum(caption.token_logprobs[: caption.prompt_tokens])
        return scores


def _decoded(paths: Sequence[PictureFile], spec: PreprocessSpec) -> Iterator[NDArray[np.uint8]]:
    """Yield `(B, H, W, 3)`, a batch at a time."""
    for part in batches(len(paths), _PICTURES):
        yield np.stack([preprocess(as_source(path), spec) for path in paths[part]])


def _joined(parts: Sequence[NDArray[np.float32]], dim: int) -> NDArray[np.float32]:
    return np.concatenate([np.empty((0, dim), dtype=np.float32), *parts])


@contextmanager
def _inference(student: "Student") -> Iterator[None]:
    """Run the student without gradients, dropout or batch statistics."""
    import torch

    was_training = student.training
    student.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        student.train(was_training)
