"""The policy asks in order: switched on, unsure, agreed to."""

from datetime import UTC, datetime

import msgspec
import pytest

from pocketlens.cloud_fallback import FALLBACK_REASONS, Consent, Decision, FallbackPolicy
from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError

GIVEN = Consent.grant("captions", at=datetime(2026, 11, 22, tzinfo=UTC))


def caption(confidence: float) -> Caption:
    return Caption(text="a cat", confidence=confidence, source="device", model_version="nano-1")


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0, float("nan")])
def test_the_default_policy_sends_nothing(confidence: float) -> None:
    assert FallbackPolicy().decide(caption(confidence)) == Decision(False, "disabled")
    assert not FallbackPolicy().withholds(caption(confidence))


def test_a_threshold_alone_sends_nothing() -> None:
    assert FallbackPolicy(threshold=1.0).decide(caption(0.0)) == Decision(False, "no_consent")


def test_consent_alone_sends_nothing() -> None:
    assert FallbackPolicy(consent=GIVEN).decide(caption(0.0)) == Decision(False, "disabled")


@pytest.mark.parametrize(
    ("confidence", "send"), [(0.0, True), (0.4999, True), (0.5, False), (1.0, False), (float("nan"), True)]
)
def test_with_both_what_is_below_the_threshold_is_sent(confidence: float, send: bool) -> None:
    decision = FallbackPolicy(threshold=0.5, consent=GIVEN).decide(caption(confidence))
    assert decision == Decision(send, "send" if send else "confident")
    assert decision.reason in FALLBACK_REASONS


@pytest.mark.parametrize(("confidence", "withheld"), [(0.1, True), (0.3, False), (float("nan"), True)])
def test_a_caption_below_the_limit_is_withheld(confidence: float, withheld: bool) -> None:
    assert FallbackPolicy(abstain_below=0.3).withholds(caption(confidence)) is withheld


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"abstain_below": 2.0},
        {"max_upload_px": 0},
        {"max_upload_px": 100_000},
    ],
)
def test_values_out_of_range_are_one_typed_error(values: dict[str, float]) -> None:
    with pytest.raises(CloudError, match=next(iter(values))):
        msgspec.convert(values, FallbackPolicy)


def test_no_consent_is_the_default() -> None:
    assert not Consent().covers("captions")
    assert GIVEN.covers("captions")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Consent(scopes=("captions",)),
        lambda: Consent(granted_at=datetime(2026, 11, 22, tzinfo=UTC)),
        lambda: Consent.grant("captions", at=datetime(2026, 11, 22)),
        lambda: Consent.grant(at=datetime(2026, 11, 22, tzinfo=UTC)),
        lambda: Consent(granted_at=datetime(2026, 11, 22)),
    ],
)
def test_consent_without_a_date_or_a_scope_is_refused(make: type[Consent]) -> None:
    with pytest.raises(CloudError, match="consent"):
        make()


def test_a_policy_survives_being_stored() -> None:
    policy = FallbackPolicy(threshold=0.5, consent=GIVEN, abstain_below=0.1)
    assert msgspec.json.decode(msgspec.json.encode(policy), type=FallbackPolicy) == policy
