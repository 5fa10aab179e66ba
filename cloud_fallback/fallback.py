"""The fallback that a `Lens` is given: policy first, network second, device caption in any case."""

from typing import TYPE_CHECKING, Literal, Protocol

from pocketlens.cloud_fallback.policy import Consent, DecisionReason, FallbackPolicy
from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError, PictureError
from pocketlens.core.events import NULL_SINK, EventSink, FallbackDecided

if TYPE_CHECKING:
    from pocketlens.cloud_fallback.client import CloudAnswer

__all__ = ["CaptionClient", "PolicyFallback"]


class CaptionClient(Protocol):
    """What captions in the cloud: `CloudCaptioner`."""

    def caption(self, picture: bytes, *, consent: Consent, max_upload_px: int) -> "CloudAnswer":
        """Return the answer; raise `CloudError` if there is none."""
        ...


class PolicyFallback:
    """A `pocketlens.core.captions.CaptionFallback`: asks `client` if, and only if, `policy` says so.

    Emits one `FallbackDecided` per caption. `sent` is true when the picture was handed to the
    network, whether or not an answer came.

    Args:
        policy: decides; the default policy sends nothing.
        client: is asked.
        sink: takes the events.
    """

    def __init__(self, policy: FallbackPolicy, client: CaptionClient, sink: EventSink = NULL_SINK) -> None:
        self._policy = policy
        self._client = client
        self._sink = sink

    def __call__(self, picture: bytes, device_caption: Caption) -> Caption:
        """Return the cloud's caption, or the device's, or an abstention.

        A cloud caption carries the device's confidence, by which it was asked for: the cloud states
        none of its own. Its `model_version` is the name that the service gives its model.

        Args:
            picture: the encoded file as the caller gave it.
            device_caption: what the device made of it.
        """
        decision = self._policy.decide(device_caption)
        if not decision.send:
            self._emit(device_caption, sent=False, reason=decision.reason)
            return self._kept(device_caption)
        try:
            answer = self._client.caption(
                picture, consent=self._policy.consent, max_upload_px=self._policy.max_upload_px
            )
        except CloudError:
            self._emit(device_caption, sent=True, reason="cloud_failed")
            return self._kept(device_caption)
        except PictureError:
            self._emit(device_caption, sent=False, reason="picture_refused")
            return self._kept(device_caption)
        self._emit(device_caption, sent=True, reason=decision.reason)
        return Caption(
            text=answer.text,
            confidence=device_caption.confidence,
            source="cloud",
            model_version=answer.model,
        )

    def _kept(self, caption: Caption) -> Caption:
        return caption.withheld() if self._policy.withholds(caption) else caption

    def _emit(
        self,
        caption: Caption,
        *,
        sent: bool,
        reason: DecisionReason | Literal["cloud_failed", "picture_refused"],
    ) -> None:
        self._sink.emit(FallbackDecided(model_version=caption.model_version, sent=sent, reason=reason))
