"""Pixels and texts to vectors of the shared space.

Letters: `B` batch, `(H, W)` the input size of the image graph, `D` the embedding, `V` visual tokens
of width `E`.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.runtime.engines import Engine

__all__ = ["Embedder"]

_TEXT_BATCH: Final = 64


class Embedder:
    """The two towers of a student.

    Args:
        engine: runs the graphs.
        tokenizer: the bundle's.
        dim: D.
        parallel: opens the engine for calls that run side by side, at the first such call; without it,
            `engine` runs them too.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, *, dim: int, parallel: Callable[[], Engine] | None = None
    ) -> None:
        self._engine = engine
        self._open_parallel = parallel
        self._parallel: Engine | None = None
        self._lock = threading.Lock()
        self._tokenizer = tokenizer
        self._dim = dim

    def images(
        self, pixels: NDArray[np.uint8], *, in_parallel: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings `(B, D)` and visual tokens `(B, V, E)` of `pixels (B, H, W, 3)`.

        Args:
            pixels: uint8.
            in_parallel: other threads make such calls at the same time.

        Raises:
            EngineError: the graph failed, or its embeddings are not finite.
        """
        engine = self._side_by_side() if in_parallel else self._engine
        outputs = engine.run("image_encoder", {"pixels": pixels})
        # A bundle that does not caption has no visual tokens.
        visual = outputs.get("visual_tokens", np.zeros((len(pixels), 0, 0), np.float32))
        return self._checked(outputs["embedding"], "image_encoder"), visual

    def _side_by_side(self) -> Engine:
        if self._open_parallel is None:
            return self._engine
        with self._lock:
            if self._parallel is None:
                self._parallel = self._open_parallel()
            return self._parallel

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return embeddings `(N, D)`; a text longer than the text encoder's input is cut off.

        Raises:
            BundleIncomplete: the bundle has no text encoder.
            EngineError: the graph failed, or its embeddings are not finite.
        """
        parts = [np.empty((0, self._dim), dtype=np.float32)]
        for first in range(0, len(texts), _TEXT_BATCH):
            ids = self._tokenizer.encode_batch(texts[first : first + _TEXT_BATCH])
            outputs = self._engine.run("text_encoder", {"ids": ids})
            parts.append(self._checked(outputs["embedding"], "text_encoder"))
        return np.concatenate(parts)

    def _checked(self, embedding: NDArray[Any], role: str) -> NDArray[np.float32]:
        if embedding.ndim != 2 or embedding.shape[1] != self._dim or not np.isfinite(embedding).all():
            raise EngineError(
                role,
                expected=f"finite embeddings (B, {self._dim})",
                found=f"{embedding.shape}, finite: {bool(np.isfinite(embedding).all())}",
                remedy="The graph is broken: export the bundle again or choose another precision.",
            )
        return embedding
