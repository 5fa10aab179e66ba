"""What a caption is, and how something outside the runtime may offer a better one."""

from typing import Literal, Protocol

import msgspec

__all__ = ["Caption", "CaptionFallback", "CaptionSource"]

CaptionSource = Literal["device", "cloud", "abstained"]
"""Where a caption comes from; `abstained` means that nobody was sure enough to say anything."""


class Caption(msgspec.Struct, frozen=True, kw_only=True):
    """One caption of one picture.

    Attributes:
        text: the caption; empty when `source` is `abstained`.
        confidence: in [0, 1]; see `pocketlens.runtime.confidence` for what it is made of.
        source: who wrote the text.
        model_version: version of the model that wrote it.
        token_ids: the decoded token ids, the prompt's first, the end token included where it was reached;
            empty for captions that did not come from the device.
        token_logprobs: natural log-probability of each id in `token_ids` under the model itself, same
            length: before temperature, truncation and banned tokens.
        token_entropies: entropy in nats of the model's distribution at each id, same length; at least 0.
        prompt_tokens: how many of `token_ids` were the caller's prompt, not the model's choice.
        similarity: cosine of the picture's and the caption's embedding under the bundle's own
            towers, in [-1, 1]; `None` when it was not computed.
        score: what captions of one picture were ranked by: the length-normalised log-probability, with
            reranking plus the weighted similarity; `None` for captions that did not come from the device.
        alternatives: the other captions that were asked for, by falling `score`; they have none themselves.
    """

    text: str
    confidence: float
    source: CaptionSource
    model_version: str
    token_ids: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    token_entropies: tuple[float, ...] = ()
    prompt_tokens: int = 0
    similarity: float | None = None
    score: float | None = None
    alternatives: "tuple[Caption, ...]" = ()

    def withheld(self) -> "Caption":
        """Return this caption with nothing in it that says what was seen: an abstention."""
        return Caption(text="", confidence=self.confidence, source="abstained", model_version=self.model_version)


class CaptionFallback(Protocol):
    """Asked after each device caption; answers with the caption to hand to the caller.

    An implementation must return `device_caption` itself whenever nothing may leave the device,
    and must never raise because the network is away.
    """

    def __call__(self, picture: bytes, device_caption: Caption) -> Caption:
        """Return the caption to use. `picture` is the encoded file as the caller gave it."""
        ...
