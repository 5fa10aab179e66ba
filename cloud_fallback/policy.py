"""When a picture may leave the device. The default policy lets none go."""

from datetime import datetime
from typing import Final, Literal, Self

import msgspec

from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError

__all__ = ["FALLBACK_REASONS", "Consent", "ConsentScope", "Decision", "DecisionReason", "FallbackPolicy"]

ConsentScope = Literal["captions"]
"""What a person may agree to: `captions` is sending pictures, made small and bare, to be captioned."""

DecisionReason = Literal["disabled", "confident", "no_consent", "send"]
"""Why a picture stays or goes, in the order in which the questions are asked."""

FALLBACK_REASONS: Final = ("disabled", "confident", "no_consent", "send", "cloud_failed", "picture_refused")
"""The closed set of words in `FallbackDecided.reason`: a decision, or what became of the sending."""


class Consent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person agreed to, and when. `Consent()` is the default: to nothing.

    Attributes:
        scopes: what may be done.
        granted_at: when that was said, with a time zone; `None` exactly when `scopes` is empty.

    Raises:
        CloudError: scopes without a date, a date without scopes, or a date without a time zone.
    """

    scopes: tuple[ConsentScope, ...] = ()
    granted_at: datetime | None = None

    def __post_init__(self) -> None:
        dated = self.granted_at is not None and self.granted_at.tzinfo is not None
        if dated != bool(self.scopes) or (self.granted_at is not None and not dated):
            raise CloudError(
                "consent",
                expected="scopes together with the time at which they were granted, time zone included",
                found=f"scopes {self.scopes!r} with granted_at {self.granted_at!r}",
                remedy="Record the consent with `Consent.grant`, or pass `Consent()` for none.",
            )

    @classmethod
    def grant(cls, *scopes: ConsentScope, at: datetime) -> Self:
        """Return the consent to `scopes`, given at `at` (with a time zone)."""
        return cls(scopes=scopes, granted_at=at)

    def covers(self, scope: ConsentScope) -> bool:
        """Return whether `scope` was agreed to."""
        return scope in self.scopes


class Decision(msgspec.Struct, frozen=True):
    """Whether a picture may be sent, and why."""

    send: bool
    reason: DecisionReason


class FallbackPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules by which a device caption is kept, replaced or withheld.

    Attributes:
        threshold: captions with a confidence below it are sent, in [0, 1]; 0 sends none.
        consent: what the person agreed to.
        max_upload_px: longest side of a picture that is sent, in pixels, 32..4096.
        abstain_below: a caption below this confidence that the cloud did not answer is withheld
            (`source="abstained"`, no text), in [0, 1]; 0 withholds none.

    Raises:
        CloudError: a value is out of range.
    """

    threshold: float = 0.0
    consent: Consent = Consent()
    max_upload_px: int = 512
    abstain_below: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threshold", "abstain_below"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise _out_of_range(name, "a number in [0, 1]", value)
        if not 32 <= self.max_upload_px <= 4096:
            raise _out_of_range("max_upload_px", "32..4096 pixels", self.max_upload_px)

    def decide(self, caption: Caption) -> Decision:
        """Return whether the picture of `caption` may be sent. A confidence of NaN counts as unsure."""
        if self.threshold <= 0.0:
            return Decision(False, "disabled")
        if caption.confidence >= self.threshold:
            return Decision(False, "confident")
        if not self.consent.covers("captions"):
            return Decision(False, "no_consent")
        return Decision(True, "send")

    def withholds(self, caption: Caption) -> bool:
        """Return whether `caption` is too unsure to be shown. NaN counts as unsure."""
        return self.abstain_below > 0.0 and not caption.confidence >= self.abstain_below


def _out_of_range(name: str, expected: str, found: float) -> CloudError:
    return CloudError(f"fallback policy, {name}", expected=expected, found=str(found), remedy="Correct the policy.")
