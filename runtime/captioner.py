"""Visual tokens to captions with per-token log-probabilities and a confidence."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import CaptionSpec, ConfidenceSpec
from pocketlens.core.captions import Caption
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime.confidence import caption_features, confidence_of
from pocketlens.runtime.decoding import Decoding, Hypothesis, Limits, PartialText, search, stream
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.engines import Engine

__all__ = ["Captioner", "Piece"]


class Piece(NamedTuple):
    """What one decoding step added to one caption of a batch.

    Attributes:
        row: which picture of the batch.
        text: what is new; may be empty.
        caption: the whole caption, with the last piece; `None` before.
    """

    row: int
    text: str
    caption: Caption | None


class Captioner:
    """Writes captions from what the image encoder saw.

    Args:
        engine: runs the graphs.
        tokenizer: the bundle's.
        spec: layout of the caption cache.
        confidence: the bundle's coefficients, or `None` for the built-in ones.
        model_version: written into every caption.
        embedder: embeds the captions for `Caption.similarity`; `None` where there is no text encoder.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        spec: CaptionSpec,
        *,
        confidence: ConfidenceSpec | None,
        model_version: str,
        embedder: Embedder | None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._spec = spec
        self._confidence = confidence
        self._model_version = model_version
        self._embedder = embedder

    def limits(self, decoding: Decoding) -> Limits:
        """Return where decoding begins and ends; never more tokens than the bundle's cache holds.

        Raises:
            ValueError: the prompt leaves no room for a token, or there is nothing to rerank by.
        """
        if decoding.rerank and self._embedder is None:
            raise ValueError("rerank: expected a bundle that embeds texts, found one without a text encoder")
        most = self._spec.max_tokens
        return Limits(
            bos_id=self._tokenizer.bos_id,
            eos_id=self._tokenizer.eos_id,
            start=self._spec.prefix_length,
            max_tokens=most if decoding.max_tokens is None else min(decoding.max_tokens, most),
            prompt=tuple(self._tokenizer.encode(decoding.prompt.strip())),
        )

    def captions(
        self,
        embeddings: NDArray[np.float32],
        visual_tokens: NDArray[np.float32],
        *,
        decoding: Decoding,
        keys: Sequence[int],
    ) -> list[Caption]:
        """Return one caption per row of `embeddings (B, D)` and `visual_tokens (B, V, E)`.

        Where more were asked for, they are its `alternatives`.

        Args:
            embeddings: of the pictures.
            visual_tokens: of the pictures.
            decoding: how.
            keys: what random draws of each picture depend on, `B` numbers in [0, 2**64).

        Raises:
            ValueError: see `limits`.
            EngineError: a graph failed, or its logits are not finite.
        """
        limits = self.limits(decoding)
        found = search(self._step, self._cache(visual_tokens), limits, decoding, keys)
        owners = [picture for picture, hypotheses in enumerate(found) for _ in hypotheses]
        written = self._written([h for hypotheses in found for h in hypotheses], embeddings[owners], limits, decoding)
        rest = iter(written)
        return [_ranked([next(rest) for _ in hypotheses]) for hypotheses in found]

    def pieces(
        self,
        embeddings: NDArray[np.float32],
        visual_tokens: NDArray[np.float32],
        *,
        decoding: Decoding,
        keys: Sequence[int],
    ) -> Iterator[Piece]:
        """Yield captions as they grow; those of a batch grow side by side. Arguments as in `captions`.

        A picture's last piece has its caption; its pieces add up to the caption's text.

        Raises:
            ValueError: see `limits`; or a beam or several captions, which have no partial text.
            EngineError: a graph failed, or its logits are not finite.
        """
        limits = self.limits(decoding)
        texts = [PartialText(self._tokenizer.decode) for _ in range(len(embeddings))]
        for step in stream(self._step, self._cache(visual_tokens), limits, decoding, keys):
            for row, hypothesis, ended in step:
                text = texts[row].grown(hypothesis.token_ids, ended=ended)
                caption = None
                if ended:
                    [caption] = self._written([hypothesis], embeddings[[row]], limits, decoding)
                if text or ended:
                    yield Piece(row, text, caption)

    def _written(
        self,
        hypotheses: Sequence[Hypothesis],
        embeddings: NDArray[np.float32],
        limits: Limits,
        decoding: Decoding,
    ) -> list[Caption]:
        """Return the caption of each hypothesis; `embeddings` has a row for each."""
        texts = [self._tokenizer.decode(hypothesis.token_ids) for hypothesis in hypotheses]
        similarities: list[float | None] = [None] * len(texts)
        if self._embedder is not None:
            vectors = self._embedder.texts(texts)
            similarities = [float(value) for value in np.einsum("bd,bd->b", embeddings, vectors)]
        return [
            self._caption(text, hypothesis, similarity, len(limits.prompt), decoding)
            for text, hypothesis, similarity in zip(texts, hypotheses, similarities, strict=True)
        ]

    def _caption(
        self, text: str, hypothesis: Hypothesis, similarity: float | None, prompt_tokens: int, decoding: Decoding
    ) -> Caption:
        features = caption_features(hypothesis.logprobs[prompt_tokens:], similarity)
        said = self._tokenizer.decode(hypothesis.token_ids[prompt_tokens:]) if prompt_tokens else text
        score = hypothesis.score(decoding.length_penalty)
        if decoding.rerank and similarity is not None:
            score += decoding.rerank_weight * similarity
        return Caption(
            text=text,
            # Nothing said is never a caption to rely on, however probable the end token was.
            confidence=confidence_of(features, self._confidence) if said else 0.0,
            source="device",
            model_version=self._model_version,
            token_ids=hypothesis.token_ids,
            token_logprobs=hypothesis.logprobs,
            token_entropies=hypothesis.entropies,
            prompt_tokens=prompt_tokens,
            similarity=similarity,
            score=score,
        )

    def _cache(self, visual_tokens: NDArray[np.float32]) -> Any:
        return self._engine.run("caption_prefill", {"visual_tokens": visual_tokens})["cache"]

    def _step(
        self, token: NDArray[np.int32], position: NDArray[np.int32], cache: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        inputs = {"token": token, "position": position, "cache": cache}
        # In order, not by name: exporters have to call the new cache something else than the old one.
        logits, grown = self._engine.run("caption_decode", inputs).values()
        return logits, grown


def _ranked(captions: Sequence[Caption]) -> Caption:
    """Return the best of `captions` with the others as its alternatives; of equal ones the first."""
    best, *others = sorted(captions, key=lambda caption: -(caption.score or 0.0))
    return msgspec.structs.replace(best, alternatives=tuple(others)) if others else best
