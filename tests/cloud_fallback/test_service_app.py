"""The service behind a real server: answers, refusals, limits, and nothing held that need not be."""

import asyncio
import io
import json
import socket
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from pocketlens.cloud_fallback.service import create_app
from pocketlens.core.errors import CloudError, EngineError, PictureError
from pocketlens.core.preprocess import PreprocessSpec, decode

StartServer = Callable[[FastAPI], str]
Message = MutableMapping[str, Any]
SPEC = PreprocessSpec(height_px=8, width_px=8)


class ColourBackend:
    """A small captioner: names the strongest channel of the picture."""

    model = "colour-1"

    def caption(self, picture: bytes) -> str:
        means = decode(picture, SPEC).reshape(-1, 3).mean(axis=0)
        return f"a {('red', 'green', 'blue')[int(means.argmax())]} picture"


class FailingBackend:
    """A backend that ends in one error, whatever it is given."""

    model = "failing-1"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def caption(self, picture: bytes) -> str:
        raise self.error


def encoded(form: str, size: tuple[int, int] = (40, 30), colour: str = "blue") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


NOISE = np.random.default_rng(7).bytes(3000)
HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "unknown_type"),
    "noise": (NOISE, "unknown_type"),
    "truncated": (encoded("JPEG", (400, 300))[:900], "corrupt"),
    "bomb": (bomb(), "too_many_pixels"),
    "strip": (encoded("PNG", (20000, 1)), "bad_shape"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unknown_type"),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_captioned(web: httpx.Client, start_server: StartServer, form: str) -> None:
    url = start_server(create_app(ColourBackend()))
    answer = web.post(f"{url}/v1/captions", content=encoded(form), headers={"Content-Type": "image/any"})
    assert (answer.status_code, answer.json()) == (200, {"text": "a blue picture", "model": "colour-1"})


def test_health_names_the_model(web: httpx.Client, start_server: StartServer) -> None:
    answer = web.get(start_server(create_app(ColourBackend())) + "/healthz")
    assert answer.json() == {"status": "ok", "model": "colour-1"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_422_with_the_typed_error(web: httpx.Client, start_server: StartServer, name: str) -> None:
    picture, kind = HOSTILE[name]
    answer = web.post(start_server(create_app(ColourBackend())) + "/v1/captions", content=picture)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert (error["type"], error["kind"]) == ("PictureError", kind)
    assert error.keys() == {"type", "kind", "what", "expected", "found", "remedy"}
    assert all(error.values())


def test_the_service_goes_on_after_hostile_uploads(web: httpx.Client, start_server: StartServer) -> None:
    url = start_server(create_app(ColourBackend(), workers=1, queue=0)) + "/v1/captions"
    for picture, _ in HOSTILE.values():
        assert web.post(url, content=picture).status_code == 422
    assert web.post(url, content=encoded("PNG")).status_code == 200


def test_a_form_is_415_and_says_what_to_do(web: httpx.Client, start_server: StartServer) -> None:
    url = start_server(create_app(ColourBackend())) + "/v1/captions"
    answer = web.post(url, files={"image": encoded("PNG")})
    assert answer.status_code == 415
    assert "--data-binary" in answer.json()["error"]["remedy"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CloudError("http://10.0.0.7", expected="x", found="secret-host", remedy="y"), 502),
        (EngineError("/srv/bundle", expected="x", found="secret-path", remedy="y"), 500),
    ],
)
def test_what_fails_behind_the_service_is_typed_and_tells_nothing_inside(
    web: httpx.Client, start_server: StartServer, error: Exception, status: int
) -> None:
    answer = web.post(start_server(create_app(FailingBackend(error))) + "/v1/captions", content=b"x")
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == type(error).__name__
    assert "secret" not in answer.text
    assert "10.0.0.7" not in answer.text
    assert "/srv" not in answer.text


def test_an_error_inside_the_limits_frees_its_place(web: httpx.Client, start_server: StartServer) -> None:
    refusal = PictureError("it", kind="corrupt", expected="x", found="y", remedy="z")
    url = start_server(create_app(FailingBackend(refusal), workers=1, queue=0)) + "/v1/captions"
    assert [web.post(url, content=b"x").status_code for _ in range(3)] == [422] * 3


def test_a_body_stated_too_large_is_413_before_any_of_it_was_sent(start_server: StartServer) -> None:
    parts = urlsplit(start_server(create_app(ColourBackend(), max_bytes=1000)))
    head = f"POST {parts.path}/v1/captions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()  # ends because the server closes
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["kind"] == "too_large"


def test_the_largest_body_is_accepted_and_one_byte_more_is_not(web: httpx.Client, start_server: StartServer) -> None:
    picture = encoded("PNG")
    for limit, status in ((len(picture), 200), (len(picture) - 1, 413)):
        url = start_server(create_app(ColourBackend(), max_bytes=limit)) + "/v1/captions"
        assert web.post(url, content=picture).status_code == status


class Upload:
    """One request, driven by hand: hands out `chunks` and keeps what the app sends."""

    def __init__(self, *chunks: bytes, endless: bool = False, stalls: bool = False) -> None:
        self.chunks = list(chunks)
        self.endless = endless
        self.stalls = stalls
        self.taken = 0
        self.received = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.taken >= len(self.chunks) and not self.endless:
            self.received.set()
            if self.stalls:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        chunk = self.chunks[self.taken % len(self.chunks)]
        self.taken += 1
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def post(self, app: FastAPI) -> int:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/captions",
            "query_string": b"",
            "headers": [],
        }
        await app(scope, self.receive, self.send)
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


def test_what_is_beyond_the_limit_is_not_held(web: httpx.Client, start_server: StartServer) -> None:
    # Read to the end, so that the answer arrives, but only the first half is kept.
    url = start_server(create_app(ColourBackend(), max_bytes=4 * 2**20)) + "/v1/captions"
    chunk = bytes(2**18)
    tracemalloc.start()
    try:
        answer = web.post(url, content=iter([chunk] * 32))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert most < 7 * 2**20


def test_an_endless_body_is_413_and_read_no_further_than_twice_the_limit() -> None:
    upload = Upload(b"a" * 1000, endless=True)
    app = create_app(ColourBackend(), max_bytes=10_000)
    assert asyncio.run(upload.post(app)) == 413
    assert upload.taken == 21


def test_a_body_that_stalls_is_408_and_frees_its_place() -> None:
    app = create_app(ColourBackend(), body_timeout_s=0.05, workers=1, queue=0)

    async def both() -> list[int]:
        return [await Upload(b"a", stalls=True).post(app), await Upload(encoded("PNG")).post(app)]

    assert asyncio.run(both()) == [408, 200]


class GatedBackend:
    """A backend that waits for its gate, and notes how many were inside at once."""

    model = "gated-1"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = 0
        self.most = 0

    def caption(self, picture: bytes) -> str:
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert self.gate.wait(20)
        self.inside -= 1
        return "a picture"


def test_a_full_queue_is_503_with_retry_after_and_one_worker_works_at_a_time() -> None:
    backend = GatedBackend()
    app = create_app(backend, workers=1, queue=2)

    async def crowd() -> tuple[list[int], Upload]:
        uploads = [Upload(b"picture") for _ in range(3)]
        waiting = [asyncio.create_task(upload.post(app)) for upload in uploads]
        for upload in uploads:
            await upload.received.wait()
        late = Upload(b"picture", b"read to the end")
        assert await late.post(app) == 503
        backend.gate.set()
        return list(await asyncio.gather(*waiting)), late

    statuses, late = asyncio.run(crowd())
    assert statuses == [200, 200, 200]
    assert backend.most == 1
    assert late.headers[b"retry-after"] == b"2"
    assert late.taken == 2


def test_a_client_that_goes_away_frees_its_place() -> None:
    class Leaving(Upload):
        async def receive(self) -> Message:
            return {"type": "http.disconnect"}

    app = create_app(ColourBackend(), workers=1, queue=0)

    async def both() -> int:
        await Leaving().post(app)
        return await Upload(encoded("PNG")).post(app)

    assert asyncio.run(both()) == 200
