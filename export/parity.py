"""How closely exported graphs answer like the eager student, on real pictures and texts.

Letters: `N` pictures, `M` texts, `D` embedding.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import CaptionSpec, Manifest, Parity, Role, TokenizerSpec
from pocketlens.runtime.decoding import Limits, greedy

if TYPE_CHECKING:  # it brings torch, which verifying a bundle does without
    from pocketlens.export.reference import Reference

__all__ = ["GraphRunner", "cosines", "greedy_captions", "measure_parity", "parity_of", "token_agreement"]

_BATCH = 32


class GraphRunner(Protocol):
    """Whatever answers in a graph's place: an engine of the runtime, or the interpreter of CoreML packages."""

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph of `role` and return its outputs by name; all arrays have the same number of rows."""
        ...


def measure_parity(engine: GraphRunner, reference: "Reference", manifest: Manifest) -> dict[Role, Parity]:
    """Return the parity of the graphs that `engine` runs: of the image encoder, and of what else the model has.

    Image and text encoder: cosine of the embeddings. Prefill: cosine of the caches, given the eager
    student's visual tokens. Decode step: agreement of greedy captions that went the whole way
    through this engine's graphs, from pixels on.
    """
    image = _run(engine, "image_encoder", {"pixels": reference.pixels})
    parity: dict[Role, Parity] = {
        "image_encoder": parity_of("cosine", cosines(image["embedding"], reference.embeddings))
    }
    if len(reference.ids):
        text = _run(engine, "text_encoder", {"ids": reference.ids})
        parity["text_encoder"] = parity_of("cosine", cosines(text["embedding"], reference.text_embeddings))
    if manifest.caption is not None:
        cache = _run(engine, "caption_prefill", {"visual_tokens": reference.visual_tokens})["cache"]
        parity["caption_prefill"] = parity_of("cosine", cosines(cache, reference.caches))
        captions = greedy_captions(
            engine, image["visual_tokens"], tokenizer=manifest.tokenizer, caption=manifest.caption
        )
        agreement = token_agreement(captions, reference.captions)
        parity["caption_decode"] = parity_of("token_agreement", agreement)
    return parity


def greedy_captions(
    engine: GraphRunner,
    visual_tokens: NDArray[np.float32],
    *,
    tokenizer: TokenizerSpec,
    caption: CaptionSpec,
) -> list[list[int]]:
    """Return greedy captions as ids for `visual_tokens (N, V, W)`, the end token included."""

    def step(
        token: NDArray[np.int32], position: NDArray[np.int32], cache: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        out = engine.run("caption_decode", {"token": token, "position": position, "cache": cache})
        return out["logits"], out["cache"]

    limits = Limits(
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        start=caption.prefix_length,
        max_tokens=caption.max_tokens,
    )
    captions: list[list[int]] = []
    for first in range(0, len(visual_tokens), _BATCH):
        feed = {"visual_tokens": visual_tokens[first : first + _BATCH]}
        cache = engine.run("caption_prefill", feed)["cache"]
        captions += [list(found.token_ids) for found in greedy(step, cache, limits)]
    return captions


def cosines(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the cosine of each row pair, `(N,)`; further axes are flattened. 0 where a row is not finite."""
    a = found.reshape(len(found), -1).astype(np.float64)
    b = expected.reshape(len(expected), -1).astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.einsum("nd,nd->n", a, b) / length
    return np.where(np.isfinite(value), value, 0.0)


def token_agreement(found: Sequence[list[int]], expected: Sequence[list[int]]) -> NDArray[np.float64]:
    """Return 1 for each caption that has the expected ids, else 0; `(N,)`."""
    return np.array([float(a == b) for a, b in zip(found, expected, strict=True)])


def parity_of(metric: Literal["cosine", "token_agreement"], values: NDArray[np.float64]) -> Parity:
    """Return the record of `values (N,)`."""
    return Parity(
        metric=metric,
        minimum=float(values.min()),
        p1=float(np.quantile(values, 0.01)),
        mean=float(values.mean()),
        samples=len(values),
    )


def _run(engine: GraphRunner, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a graph over all rows, a batch at a time."""
    rows = len(next(iter(inputs.values())))
    parts = [
        engine.run(role, {name: array[first : first + _BATCH] for name, array in inputs.items()})
        for first in range(0, rows, _BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
