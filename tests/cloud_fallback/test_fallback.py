"""Whatever the network does, a caption comes out and one event is emitted."""

import socket
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from pocketlens.cloud_fallback import CloudCaptioner, Consent, FallbackPolicy, PolicyFallback
from pocketlens.core.captions import Caption
from pocketlens.core.events import Event, FallbackDecided
from pocketlens.telemetry import load_schema

GIVEN = Consent.grant("captions", at=datetime(2026, 11, 22, tzinfo=UTC))
SENDING = FallbackPolicy(threshold=0.5, consent=GIVEN)
StartServer = Callable[[FastAPI], str]


class Recorder:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def answering(answer: Callable[[], Response]) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/captions")
    async def caption() -> Response:
        return answer()

    return app


def test_the_cloud_answers_for_an_unsure_device(
    start_server: StartServer, tell_tale_png: bytes, unsure: Caption
) -> None:
    url = start_server(answering(lambda: JSONResponse({"text": " a red\nsquare ", "model": "demo-1"})))
    sink = Recorder()
    with CloudCaptioner(url) as client:
        caption = PolicyFallback(SENDING, client, sink)(tell_tale_png, unsure)
    assert caption == Caption(text="a red square", confidence=0.2, source="cloud", model_version="demo-1")
    assert sink.events == [FallbackDecided("nano-1", sent=True, reason="send")]


FAILURES: dict[str, Callable[[], Response]] = {
    "500": lambda: Response(status_code=500),
    "429": lambda: Response(status_code=429),
    "garbage": lambda: Response(b"\x00<html>"),
}


@pytest.mark.parametrize("abstain_below", [0.0, 0.3])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_service_leaves_the_device_caption_or_an_abstention(
    start_server: StartServer, tell_tale_png: bytes, unsure: Caption, failure: str, abstain_below: float
) -> None:
    policy = FallbackPolicy(threshold=0.5, consent=GIVEN, abstain_below=abstain_below)
    sink = Recorder()
    with CloudCaptioner(start_server(answering(FAILURES[failure]))) as client:
        caption = PolicyFallback(policy, client, sink)(tell_tale_png, unsure)
    if abstain_below:
        assert caption == Caption(text="", confidence=0.2, source="abstained", model_version="nano-1")
    else:
        assert caption is unsure
    assert sink.events == [FallbackDecided("nano-1", sent=True, reason="cloud_failed")]


@pytest.mark.parametrize("listening", [True, False])
def test_a_silent_or_absent_service_leaves_the_device_caption(
    tell_tale_png: bytes, unsure: Caption, listening: bool
) -> None:
    sink = Recorder()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        with CloudCaptioner(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2) as client:
            assert PolicyFallback(SENDING, client, sink)(tell_tale_png, unsure) is unsure
    assert sink.events == [FallbackDecided("nano-1", sent=True, reason="cloud_failed")]


def test_a_picture_that_cannot_be_made_small_is_not_sent(unsure: Caption) -> None:
    sink = Recorder()
    with CloudCaptioner("https://captions.example") as client:
        assert PolicyFallback(SENDING, client, sink)(b"no picture", unsure) is unsure
    assert sink.events == [FallbackDecided("nano-1", sent=False, reason="picture_refused")]


def test_every_event_of_the_fallback_is_declared(unsure: Caption) -> None:
    sink = Recorder()
    sure = Caption(text="a cat", confidence=0.9, source="device", model_version="nano-1")
    with CloudCaptioner("https://captions.example") as client:
        PolicyFallback(FallbackPolicy(), client, sink)(b"", unsure)
        PolicyFallback(FallbackPolicy(threshold=0.5), client, sink)(b"", unsure)
        PolicyFallback(SENDING, client, sink)(b"", sure)
        PolicyFallback(SENDING, client, sink)(b"", unsure)
    day = datetime(2026, 11, 22, tzinfo=UTC).date()
    records = [load_schema().admit(event, on=day) for event in sink.events]
    assert [record and record["reason"] for record in records] == [
        "disabled",
        "no_consent",
        "confident",
        "picture_refused",
    ]
