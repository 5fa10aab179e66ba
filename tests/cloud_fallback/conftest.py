"""Real servers on loopback, and pictures that carry more than their pixels."""

import io
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
import stamina
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from starlette.types import Receive, Scope, Send

from pocketlens.core.captions import Caption

StartServer = Callable[[FastAPI], str]


class AnnouncingServer(uvicorn.Server):
    """A uvicorn server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class Switchboard:
    """An ASGI app that passes `/N/path` on to the Nth app as `/path`: one server for all tests."""

    def __init__(self) -> None:
        self.apps: list[FastAPI] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, number, path = scope["path"].split("/", 2)
        await self.apps[int(number)]({**scope, "path": f"/{path}"}, receive, send)


@pytest.fixture(scope="session")
def _switchboard() -> Iterator[tuple[Switchboard, str]]:
    board = Switchboard()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(board, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = AnnouncingServer(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.listening.wait(20)
            yield board, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def start_server(_switchboard: tuple[Switchboard, str]) -> StartServer:
    """Put any number of apps behind a real server; return the address of each."""
    board, url = _switchboard

    def start(app: FastAPI) -> str:
        board.apps.append(app)
        return f"{url}/{len(board.apps) - 1}"

    return start


@pytest.fixture(scope="session")
def web() -> Iterator[httpx.Client]:
    """Return any other client than ours."""
    with httpx.Client(trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_waiting_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture that is red on the left and blue on the right, green growing downwards."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 200
    image[:, width // 2 :, 2] = 200
    image[..., 1] = np.linspace(0, 120, height, dtype=np.uint8)[:, None]
    return image


@pytest.fixture
def tell_tale_jpeg() -> bytes:
    """Return a JPEG of 1200 x 900 with place, time, owner, profile, comment and trailing bytes."""
    exif = Image.Exif()
    exif[0x010F] = "TELLTALE maker"
    exif[0x0112] = 6  # shown upright it is 900 wide and 1200 high
    exif[0x9003] = "2026:11:22 12:00:00"
    exif[0x8825] = {1: "N", 2: (48.0, 12.0, 30.0), 3: "E", 4: (16.0, 22.0, 12.0)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out = io.BytesIO()
    Image.fromarray(pixels(900, 1200)).save(
        out,
        "JPEG",
        quality=90,
        exif=exif,
        icc_profile=profile,
        comment=b"TELLTALE comment",
        xmp=b"<x:xmpmeta>TELLTALE xmp</x:xmpmeta>",
    )
    return out.getvalue() + b"TELLTALE trailer"


@pytest.fixture
def tell_tale_png() -> bytes:
    """Return a PNG with transparency and text chunks."""
    text = PngInfo()
    text.add_text("Author", "TELLTALE author")
    image = Image.fromarray(pixels(60, 90)).convert("RGBA")
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=text)
    return out.getvalue()


@pytest.fixture
def unsure() -> Caption:
    """Return a device caption of confidence 0.2."""
    return Caption(
        text="a red thing",
        confidence=0.2,
        source="device",
        model_version="nano-1",
        token_ids=(5, 6, 2),
        token_logprobs=(-1.0, -2.0, -0.1),
        similarity=0.3,
    )
