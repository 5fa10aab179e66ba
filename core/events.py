"""The events that pocketlens emits about itself, and the sink that takes them.

The runtime emits; whoever builds the `Lens` decides where events go. No event holds a picture,
a path, a caption or a vector: only closed sets of words and numbers with a unit. Each type here
is declared, with purpose and sensitivity, in `telemetry/events.yaml`; a test holds the two equal.
"""

from typing import Protocol

import msgspec

from pocketlens.core.captions import CaptionSource

__all__ = [
    "NULL_SINK",
    "CaptionServed",
    "EmbeddingServed",
    "EngineFellBack",
    "EngineLoaded",
    "Event",
    "EventSink",
    "FallbackDecided",
    "PictureRefused",
]


class EngineLoaded(msgspec.Struct, frozen=True, tag="engine_loaded", tag_field="event"):
    """A bundle was opened and an engine is ready.

    `engine` and `precision` are those of the image encoder; `load_ms`: milliseconds, verification
    included; `chosen_by`: `tuned` by a measurement on this device, `exported` by the figures of the
    exporting machine, `asked` by the caller.
    """

    model_version: str
    engine: str
    precision: str
    load_ms: float
    chosen_by: str = "exported"


class EngineFellBack(msgspec.Struct, frozen=True, tag="engine_fell_back", tag_field="event"):
    """An engine failed and another one took over the graph of one role, for good.

    `reason`: `unavailable` (its package, provider or device is not there), `failed` (the graph does not
    load or its call failed) or `not_finite` (it answered with NaN or infinity).
    """

    model_version: str
    role: str
    engine: str
    replacement: str
    reason: str


class EmbeddingServed(msgspec.Struct, frozen=True, tag="embedding_served", tag_field="event"):
    """A batch was embedded. `modality` is `image` or `text`; `batch_ms`: wall time of the batch."""

    model_version: str
    modality: str
    batch_size: int
    batch_ms: float


class CaptionServed(msgspec.Struct, frozen=True, tag="caption_served", tag_field="event"):
    """A caption was handed out. `caption_ms`: wall time, encoder and decoding included."""

    model_version: str
    source: CaptionSource
    confidence: float
    tokens: int
    caption_ms: float


class PictureRefused(msgspec.Struct, frozen=True, tag="picture_refused", tag_field="event"):
    """A picture was refused. `kind` is one of `pocketlens.core.errors.PICTURE_KINDS`."""

    model_version: str
    kind: str


class FallbackDecided(msgspec.Struct, frozen=True, tag="fallback_decided", tag_field="event"):
    """The policy decided about one caption. `reason` is one of the policy's closed set of words."""

    model_version: str
    sent: bool
    reason: str


Event = EngineLoaded | EngineFellBack | EmbeddingServed | CaptionServed | PictureRefused | FallbackDecided


class EventSink(Protocol):
    """Takes events. `emit` must be cheap and must never raise: health reports break nothing."""

    def emit(self, event: Event) -> None:
        """Take one event."""
        ...


class _NullSink:
    def emit(self, event: Event) -> None:
        pass


NULL_SINK: EventSink = _NullSink()
"""The default sink: forgets everything."""
