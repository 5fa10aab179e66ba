"""Device, service and an OpenAI-compatible upstream, each a real server, end to end."""

import base64
import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from pocketlens.cloud_fallback import CloudCaptioner, Consent, FallbackPolicy, PolicyFallback
from pocketlens.cloud_fallback.service import BundleBackend, OpenAIUpstream, create_app
from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError, PictureError
from pocketlens.core.preprocess import PreprocessSpec, decode

StartServer = Callable[[FastAPI], str]
GIVEN = Consent.grant("captions", at=datetime(2026, 11, 22, tzinfo=UTC))


class Upstream:
    """A chat-completions server that looks at the picture it is sent and names its size."""

    def __init__(self, answer: Callable[[], Response] | None = None) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.pictures: list[bytes] = []
        self.app = FastAPI()

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            asked = await request.json()
            self.requests.append((dict(request.headers), asked))
            _, part = asked["messages"][0]["content"]
            kind, _, data = part["image_url"]["url"].partition(",")
            assert kind == "data:image/jpeg;base64"
            self.pictures.append(base64.b64decode(data))
            width, height = Image.open(io.BytesIO(self.pictures[-1])).size
            if answer is not None:
                return answer()
            message = {"role": "assistant", "content": f" A picture of {width} by {height}.\n"}
            return JSONResponse({"id": "1", "choices": [{"index": 0, "message": message}], "usage": {}})


def test_an_unsure_device_gets_the_upstreams_caption(
    start_server: StartServer, tell_tale_jpeg: bytes, unsure: Caption
) -> None:
    upstream = Upstream()
    backend = OpenAIUpstream(start_server(upstream.app) + "/v1", model="vlm-7b", api_key="sk-1")
    service = start_server(create_app(backend))
    policy = FallbackPolicy(threshold=0.5, consent=GIVEN, max_upload_px=128)
    with CloudCaptioner(service) as client:
        caption = PolicyFallback(policy, client)(tell_tale_jpeg, unsure)
    backend.close()
    assert (caption.text, caption.source) == ("A picture of 96 by 128.", "cloud")
    assert caption.model_version == "vlm-7b"
    [(headers, asked)] = upstream.requests
    assert headers["authorization"] == "Bearer sk-1"
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("vlm-7b", 0, 64)
    assert "sentence" in asked["messages"][0]["content"][0]["text"]


def test_the_upstream_gets_no_metadata_from_a_foreign_client_either(
    web: httpx.Client, start_server: StartServer, tell_tale_jpeg: bytes
) -> None:
    upstream = Upstream()
    backend = OpenAIUpstream(start_server(upstream.app) + "/v1", model="vlm-7b", max_upload_px=64)
    service = start_server(create_app(backend))
    answer = web.post(f"{service}/v1/captions", content=tell_tale_jpeg)
    assert answer.json() == {"text": "A picture of 48 by 64.", "model": "vlm-7b"}
    assert b"TELLTALE" in tell_tale_jpeg
    assert b"TELLTALE" not in upstream.pictures[0]
    assert b"Exif" not in upstream.pictures[0]
    assert web.post(f"{service}/v1/captions", content=b"no picture").status_code == 422
    assert len(upstream.requests) == 1
    backend.close()


BAD: dict[str, Callable[[], Response]] = {
    "500": lambda: Response("secret", status_code=500),
    "garbage": lambda: Response(b"<html>"),
    "no choices": lambda: JSONResponse({"choices": []}),
    "no content": lambda: JSONResponse({"choices": [{"message": {"content": None}}]}),
    "empty": lambda: JSONResponse({"choices": [{"message": {"content": "  "}}]}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_failing_upstream_is_502_and_the_device_caption_stays(
    web: httpx.Client, start_server: StartServer, tell_tale_png: bytes, unsure: Caption, name: str
) -> None:
    upstream = Upstream(BAD[name])
    backend = OpenAIUpstream(start_server(upstream.app) + "/v1", model="vlm-7b")
    with pytest.raises(CloudError):
        backend.caption(tell_tale_png)
    service = start_server(create_app(backend))
    answer = web.post(f"{service}/v1/captions", content=tell_tale_png)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "CloudError")
    assert "secret" not in answer.text
    with CloudCaptioner(service) as client:
        policy = FallbackPolicy(threshold=0.5, consent=GIVEN)
        assert PolicyFallback(policy, client)(tell_tale_png, unsure) is unsure
    backend.close()


def test_a_key_that_is_no_header_is_refused_and_not_repeated() -> None:
    with pytest.raises(CloudError, match="Authorization") as caught:
        OpenAIUpstream("http://127.0.0.1:1/v1", model="m", api_key="sk-secret\r\nX: y")
    assert "sk-secret" not in str(caught.value)


class BrightnessLens:
    """Captions as a `Lens` does, from the pixels, without a model."""

    def caption(self, picture: bytes, /) -> Caption:
        bright = decode(picture, PreprocessSpec(height_px=8, width_px=8)).mean() > 127
        text = "a bright picture" if bright else "a dark picture"
        return Caption(text=text, confidence=0.9, source="device", model_version="nano-1")


def test_a_bundle_can_stand_behind_the_service(start_server: StartServer, tell_tale_png: bytes) -> None:
    backend = BundleBackend(BrightnessLens(), model="nano-1")
    service = start_server(create_app(backend))
    with CloudCaptioner(service) as client:
        answer = client.caption(tell_tale_png, consent=GIVEN, max_upload_px=64)
    assert (answer.text, answer.model) == ("a dark picture", "nano-1")
    with pytest.raises(PictureError):
        backend.caption(b"no picture")
