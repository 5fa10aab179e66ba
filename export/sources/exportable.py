"""What the exporter needs of a model, whether it was distilled here or comes as it is.

Letters: `B` batch, `H`, `W` input size, `D` embedding, `T` text length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import torch
from torch import Tensor, nn

from pocketlens.core.bundle import CaptionSpec, Role
from pocketlens.core.errors import ExportError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.student import Student, preprocess_spec

__all__ = ["Exportable", "OpenedSource", "Original", "exportable_of", "greedy_ids"]

_CAPTION_ROLES: Final[tuple[Role, ...]] = ("caption_prefill", "caption_decode")


class Original(Protocol):
    """The model as its own library runs it: what exported graphs are compared with.

    `texts` is not called for a model without a text encoder, `captions` not for one that does not caption.
    """

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return embeddings and visual tokens for `pixels (B, H, W, 3)` uint8.

        `(B, D)` float32 of unit norm and `(B, V, E)` float32; `None` for a model that does not caption.
        """
        ...

    def texts(self, ids: Tensor) -> Tensor:
        """Return `(B, D)` float32 of unit norm for `ids (B, T)` int32, as the bundle's tokenizer gives them."""
        ...

    def captions(self, pixels: Tensor, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        """Return greedy captions as ids, the end token included where reached.

        `pixels (B, H, W, 3)` uint8 and `visual_tokens (B, V, E)`, which belong together: a model starts from
        whichever its library takes.
        """
        ...


@dataclass(frozen=True)
class Exportable:
    """A model cut into the graphs of a bundle.

    Attributes:
        modules: by role, in eval mode, with the inputs and outputs of docs/bundle.md. `image_encoder` is
            always there; it gives `(embedding,)` or, for a model that captions, `(embedding, visual_tokens)`.
        original: the reference.
        preprocess: how pictures become pixels.
        mean, std: what the image encoder normalises pixels with, after scaling them to [0, 1].
        embed_dim: D.
        text_length: T.
        vocab_size: ids are below it.
        caption: layout of the cache; `None` for a model that does not caption.
        ranges: see `Student.ranges`; empty for a model that was not trained for int8.
    """

    modules: Mapping[Role, nn.Module]
    original: Original
    preprocess: PreprocessSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embed_dim: int
    text_length: int
    vocab_size: int
    caption: CaptionSpec | None = None
    ranges: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        captions = [role for role in _CAPTION_ROLES if role in self.modules]
        if "image_encoder" not in self.modules or len(captions) == 1 or bool(captions) != (self.caption is not None):
            raise ExportError(
                "the model's parts",
                expected="an image encoder, and prefill, decode step and cache layout together or not at all",
                found=f"{', '.join(self.modules) or 'no part'}",
                remedy="Export a dual encoder or a captioner: an image part is needed for both.",
            )

    @property
    def tasks(self) -> tuple[Literal["embed", "caption"], ...]:
        """What a bundle of this model does. Without a text part, embeddings compare pictures with pictures only."""
        tasks: list[Literal["embed", "caption"]] = ["embed"] if "text_encoder" in self.modules else []
        return (*tasks, "caption") if self.caption else tuple(tasks)

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return embedding and visual tokens (`None` without captioning) of the module that is exported."""
        result = self.modules["image_encoder"](pixels)
        return result if isinstance(result, tuple) else (result, None)


@dataclass(frozen=True)
class OpenedSource:
    """A source that was read: the model, its tokenizer and what its bundle has to say about it.

    Attributes:
        model: the parts.
        tokenizer: the bundle's.
        tokenizer_json: its file.
        id: the model's name.
        licence: SPDX identifier or free text; `unknown` where the source does not say.
        digest: SHA-256 over configuration, weights and tokenizer.
        facts: for the manifest's provenance.
        own_ids: the model's own tokenizer: texts to `(B, T)` ids in the layout of `TextGraph.own_ids`; `None`
            where the bundle's tokenizer is the model's own.
    """

    model: Exportable
    tokenizer: Tokenizer
    tokenizer_json: str
    id: str
    licence: str
    digest: str
    facts: dict[str, str] = field(default_factory=dict)
    own_ids: Callable[[Sequence[str]], Tensor] | None = None


@torch.no_grad()
def greedy_ids(
    prefill: nn.Module, step: nn.Module, visual_tokens: Tensor, spec: CaptionSpec, *, bos_id: int, eos_id: int
) -> list[list[int]]:
    """Return greedy captions as ids, the end token included where reached, for `visual_tokens (B, V, E)`."""
    batch = visual_tokens.shape[0]
    cache = prefill(visual_tokens)
    token = torch.full((batch,), bos_id, dtype=torch.int32)
    captions: list[list[int]] = [[] for _ in range(batch)]
    done = torch.zeros(batch, dtype=torch.bool)
    for offset in range(spec.max_tokens):
        position = torch.full((batch,), spec.prefix_length + offset, dtype=torch.int32)
        logits, cache = step(token, position, cache)
        token = logits.argmax(dim=-1).to(torch.int32)
        for row in torch.nonzero(~done).flatten().tolist():
            captions[row].append(int(token[row]))
        done |= token == eos_id
        if bool(done.all()):
            break
    return captions


class _StudentReference:
    """A student is its own reference: the same modules, run eagerly."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        embedding, tokens = self._student.image_encoder(pixels)
        return embedding, tokens

    def texts(self, ids: Tensor) -> Tensor:
        embedding: Tensor = self._student.text_encoder(ids)
        return embedding

    def captions(self, pixels: Tensor, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        return self._student.greedy(visual_tokens, bos_id=bos_id, eos_id=eos_id)


def exportable_of(model: "Student | Exportable") -> Exportable:
    """Return `model` as an `Exportable`; a student (in eval mode) is wrapped, its weights shared."""
    if isinstance(model, Exportable):
        return model
    config = model.config
    modules: dict[Role, nn.Module] = {
        "image_encoder": model.image_encoder,
        "text_encoder": model.text_encoder,
        "caption_prefill": model.caption_prefill().eval(),
        "caption_decode": model.caption_decode().eval(),
    }
    return Exportable(
        modules,
        _StudentReference(model),
        preprocess_spec(config),
        config.mean,
        config.std,
        config.embed_dim,
        config.text_length,
        config.vocab_size,
        CaptionSpec(prefix_length=model.caption_decoder.visual_tokens, max_tokens=config.caption_tokens),
        ranges=model.ranges,
    )
