"""The client against real servers that are well, busy, down, broken or hostile."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

import pytest
import stamina
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from PIL import Image
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from pocketlens.cloud_fallback import CloudAnswer, CloudCaptioner, Consent, FallbackPolicy, PolicyFallback
from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError, ConsentRequired, PictureError
from pocketlens.core.events import Event, FallbackDecided

GIVEN = Consent.grant("captions", at=datetime(2026, 11, 22, tzinfo=UTC))
GOOD = {"text": "a red square", "model": "demo-1"}
StartServer = Callable[[FastAPI], str]


class Scripted:
    """A server that gives the answers of a list, the last one again and again, and keeps what it got."""

    def __init__(self, *answers: Callable[[], Response]) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.app = FastAPI()

        @self.app.post("/v1/captions")
        async def caption(request: Request) -> Response:
            self.received.append((dict(request.headers), await request.body()))
            return answers[min(len(self.received), len(answers)) - 1]()


class Recorder:
    """A sink that keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


async def four_mebibytes() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield b"a" * 65536
        await asyncio.sleep(0)  # lets the server notice that nobody listens any more


def good() -> Response:
    return JSONResponse(GOOD)


def status(code: int) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": "\x1b[31mno"}, code)


BAD_ANSWERS: dict[str, Callable[[], Response]] = {
    "500": status(500),
    "401": status(401),
    "404": status(404),
    "422": status(422),
    "redirect": lambda: RedirectResponse("/v1/captions"),
    "garbage": lambda: Response(b"\x00<html>", media_type="application/json"),
    "no utf-8": lambda: Response(b'{"text": "\xff", "model": "m"}'),
    "list": lambda: JSONResponse(["a cat"]),
    "no text": lambda: JSONResponse({"model": "m"}),
    "text is a number": lambda: JSONResponse({"text": 3, "model": "m"}),
    "empty text": lambda: JSONResponse({"text": "  ", "model": "m"}),
    "endless text": lambda: JSONResponse({"text": "cat " * 1000, "model": "m"}),
    "terminal escape": lambda: JSONResponse({"text": "a cat\x1b]0;owned\x07", "model": "m"}),
    "half a character": lambda: Response(b'{"text": "a cat \\ud800", "model": "m"}'),
    "large body": lambda: StreamingResponse(four_mebibytes(), media_type="application/json"),
    "compressed": lambda: Response(b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"}),
}


def ask(url: str, picture: bytes, *, attempts: int = 3) -> CloudAnswer:
    with CloudCaptioner(url, timeout_s=10, attempts=attempts) as client:
        return client.caption(picture, consent=GIVEN, max_upload_px=256)


def test_the_answer_is_returned_and_the_server_got_a_small_bare_jpeg(
    start_server: StartServer, tell_tale_jpeg: bytes
) -> None:
    server = Scripted(good)
    assert ask(start_server(server.app), tell_tale_jpeg) == CloudAnswer("a red square", "demo-1")
    [(headers, body)] = server.received
    assert headers["content-type"] == "image/jpeg"
    assert headers["user-agent"] == "pocketlens"
    assert b"TELLTALE" not in body
    assert b"Exif" not in body
    assert max(Image.open(io.BytesIO(body)).size) == 256


def test_the_default_policy_makes_no_request(start_server: StartServer, tell_tale_jpeg: bytes, unsure: Caption) -> None:
    server, sink = Scripted(good), Recorder()
    with CloudCaptioner(start_server(server.app)) as client:
        fallback = PolicyFallback(FallbackPolicy(), client, sink)
        assert fallback(tell_tale_jpeg, unsure) is unsure
        no_consent = PolicyFallback(FallbackPolicy(threshold=1.0), client, sink)
        assert no_consent(tell_tale_jpeg, unsure) is unsure
        with pytest.raises(ConsentRequired):
            client.caption(tell_tale_jpeg, consent=Consent(), max_upload_px=256)
        assert server.received == []
        # The server does count: one request arrives once both are there.
        sending = PolicyFallback(FallbackPolicy(threshold=1.0, consent=GIVEN), client, sink)
        assert sending(tell_tale_jpeg, unsure).source == "cloud"
    assert len(server.received) == 1
    assert [event.reason for event in sink.events if isinstance(event, FallbackDecided)] == [
        "disabled",
        "no_consent",
        "send",
    ]


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_under_the_same_key(
    start_server: StartServer, tell_tale_png: bytes, code: int
) -> None:
    server = Scripted(status(code), status(code), good)
    url = start_server(server.app)
    assert ask(url, tell_tale_png).text == "a red square"
    assert ask(url, tell_tale_png).text == "a red square"
    keys = [headers["idempotency-key"] for headers, _ in server.received]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert len({body for _, body in server.received}) == 1


def test_a_busy_server_is_not_asked_for_ever(start_server: StartServer, tell_tale_png: bytes) -> None:
    server = Scripted(status(503))
    with pytest.raises(CloudError, match="503"):
        ask(start_server(server.app), tell_tale_png, attempts=3)
    assert len(server.received) == 3


class NoPatienceError(Exception):
    """Ends a retry before it waits."""


@pytest.mark.parametrize(("header", "wait_s"), [("0", 0.0), ("3", 3.0), ("1000000", 5.0)])
def test_retry_after_is_heeded_within_bounds(
    start_server: StartServer, tell_tale_png: bytes, header: str, wait_s: float
) -> None:
    server = Scripted(lambda: Response(status_code=503, headers={"Retry-After": header}))
    waits: list[float] = []

    def note(details: RetryDetails) -> None:
        waits.append(details.wait_for)
        raise NoPatienceError

    url = start_server(server.app)
    set_on_retry_hooks([note])
    try:
        with stamina.set_testing(False), pytest.raises(NoPatienceError):
            ask(url, tell_tale_png)
    finally:
        set_on_retry_hooks(None)
    assert waits == [wait_s]


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_any_other_answer_is_one_typed_error_after_one_request(
    start_server: StartServer, tell_tale_png: bytes, name: str
) -> None:
    server = Scripted(BAD_ANSWERS[name])
    with pytest.raises(CloudError) as caught:
        ask(start_server(server.app), tell_tale_png)
    assert len(server.received) == 1
    assert str(caught.value).isprintable()


def test_a_redirect_is_not_followed(start_server: StartServer, tell_tale_png: bytes) -> None:
    elsewhere = Scripted(good)
    target = start_server(elsewhere.app) + "/v1/captions"
    server = Scripted(lambda: RedirectResponse(target, status_code=307))
    with pytest.raises(CloudError, match="307"):
        ask(start_server(server.app), tell_tale_png)
    assert elsewhere.received == []


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    # Bound, not listening: connecting is refused, and nobody else can take the port.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def dripping_server() -> Iterator[str]:
    """Send a header, then a blank every 50 ms for as long as anybody listens."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("server", [closed_port, silent_server, dripping_server])
def test_a_server_that_is_down_silent_or_dripping_is_one_typed_error(
    tell_tale_png: bytes, server: Callable[[], contextlib.AbstractContextManager[str]]
) -> None:
    with server() as url, CloudCaptioner(url, timeout_s=0.3) as client, pytest.raises(CloudError):
        client.caption(tell_tale_png, consent=GIVEN, max_upload_px=64)


def test_a_broken_picture_is_refused_before_anything_is_sent(start_server: StartServer) -> None:
    server = Scripted(good)
    url = start_server(server.app)
    with pytest.raises(PictureError):
        ask(url, b"no picture")
    assert server.received == []


@pytest.mark.parametrize(
    "url",
    ["", "captions.example", "ftp://captions.example", "http://captions.example", "https://", "http://[::1"],
)
def test_an_unusable_address_is_one_typed_error(url: str) -> None:
    with pytest.raises(CloudError, match="address"):
        CloudCaptioner(url)


def test_plain_http_to_another_machine_wants_a_word() -> None:
    CloudCaptioner("http://captions.example", allow_http=True).close()
    CloudCaptioner("http://[::1]:8017").close()
    CloudCaptioner("http://localhost:8017").close()


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(CloudError, match="password") as caught:
        CloudCaptioner("https://ann:hunter2@captions.example")
    assert "hunter2" not in str(caught.value)
