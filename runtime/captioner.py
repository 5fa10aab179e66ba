"""Visual tokens to captions with per-token log-probabilities and a confidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import CaptionSpec, ConfidenceSpec
from pocketlens.core.captions import Caption
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime.confidence import caption_features, confidence_of
from pocketlens.runtime.decoding import Hypothesis, Limits, beam_search, greedy
from pocketlens.runtime.embedder import Embedder
from pocketlens.runtime.engines import Engine

__all__ = ["Captioner"]


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

    def limits(self, max_tokens: int | None) -> Limits:
        """Return where decoding begins and ends; never more tokens than the bundle's cache holds."""
        most = self._spec.max_tokens
        return Limits(
            bos_id=self._tokenizer.bos_id,
            eos_id=self._tokenizer.eos_id,
            start=self._spec.prefix_length,
            max_tokens=most if max_tokens is None else min(max_tokens, most),
        )

    def captions(
        self,
        embeddings: NDArray[np.float32],
        visual_tokens: NDArray[np.float32],
        *,
        beam: int,
        limits: Limits,
    ) -> list[Caption]:
        """Return one caption per row of `embeddings (B, D)` and `visual_tokens (B, V, E)`.

        Raises:
            EngineError: a graph failed, or its logits are not finite.
        """
        cache = self._engine.run("caption_prefill", {"visual_tokens": visual_tokens})["cache"]
        if beam == 1:
            hypotheses = greedy(self._step, cache, limits)
        else:
            hypotheses = beam_search(self._step, cache, limits, beam=beam)
        texts = [self._tokenizer.decode(hypothesis.token_ids) for hypothesis in hypotheses]
        similarities: list[float | None] = [None] * len(texts)
        if self._embedder is not None:
            vectors = self._embedder.texts(texts)
            similarities = [float(value) for value in np.einsum("bd,bd->b", embeddings, vectors)]
        return [
            self._caption(text, hypothesis, similarity)
            for text, hypothesis, similarity in zip(texts, hypotheses, similarities, strict=True)
        ]

    def _caption(self, text: str, hypothesis: Hypothesis, similarity: float | None) -> Caption:
        features = caption_features(hypothesis.logprobs, similarity)
        return Caption(
            text=text,
            # Nothing said is never a caption to rely on, however probable the end token was.
            confidence=confidence_of(features, self._confidence) if text else 0.0,
            source="device",
            model_version=self._model_version,
            token_ids=hypothesis.token_ids,
            token_logprobs=hypothesis.logprobs,
            similarity=similarity,
        )

    def _step(
        self, token: NDArray[np.int32], position: NDArray[np.int32], cache: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        inputs = {"token": token, "position": position, "cache": cache}
        # In order, not by name: exporters have to call the new cache something else than the old one.
        logits, grown = self._engine.run("caption_decode", inputs).values()
        return logits, grown
