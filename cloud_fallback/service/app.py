"""The HTTP side of the caption service.

::

    POST /v1/captions   body: one encoded picture   200 {"text": …, "model": …}
    GET  /healthz                                   200 {"status": "ok", "model": …}

An error is `{"error": {"type", "what", "expected", "found", "remedy"}}`, with `kind` for pictures:
408 the body came too slowly, 413 it is too large, 415 it is a form, 422 the picture was refused,
500 the backend failed, 502 what stands behind it failed, 503 all places are taken (`Retry-After`).

Pictures are held in memory while they are captioned and nowhere else: they are neither stored nor
logged. There is no authentication; do not listen on more than the own machine without a gateway.
"""

import asyncio
import logging
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from pocketlens.cloud_fallback.service.backends import CaptionBackend
from pocketlens.core.errors import CloudError, PictureError, PocketlensError

__all__ = ["create_app"]

_LOG: Final = logging.getLogger("pocketlens.service")
_RETRY_AFTER_S: Final = 2
# The body is read by hand, so FastAPI cannot derive this.
_REQUEST_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_LENGTH_DIGITS: Final = 18
_BUSY: Final = 503
# Answers that may be given before the body was read to its end: the connection is of no more use.
_UNREAD: Final = (408, 413)


class _RefusedError(Exception):
    """Ends a request early with `status` and the typed `error`."""

    def __init__(self, status: int, error: PocketlensError) -> None:
        super().__init__(status)
        self.status = status
        self.error = error


def create_app(
    backend: CaptionBackend,
    *,
    max_bytes: int = 16 * 2**20,
    workers: int = 1,
    queue: int = 8,
    body_timeout_s: float = 30.0,
) -> FastAPI:
    """Return the service with `backend` behind it.

    Args:
        backend: writes the captions.
        max_bytes: largest picture that is accepted; no more of it than that is ever held.
        workers: how many pictures are captioned at once, each in a thread.
        queue: how many more may wait; the next one is told to come back.
        body_timeout_s: how long the upload of one picture may take.
    """
    # The generated pages load scripts from elsewhere; the description itself stays.
    app = FastAPI(title="pocketlens captions", docs_url=None, redoc_url=None)
    for ending in (_RefusedError, PocketlensError, ClientDisconnect):
        app.add_exception_handler(ending, _answer)
    running = asyncio.Semaphore(workers)
    places = _Places(workers + queue)

    @app.post("/v1/captions", openapi_extra=_REQUEST_BODY)
    async def caption(request: Request) -> JSONResponse:
        if not places.free:
            await _receive(request, max_bytes, body_timeout_s, keep=False)
            raise _RefusedError(_BUSY, _busy())
        with places:
            picture = await _receive(request, max_bytes, body_timeout_s, keep=True)
            async with running:
                text = await asyncio.to_thread(backend.caption, picture)
        return JSONResponse({"text": text, "model": backend.model})

    @app.get("/healthz")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "model": backend.model})

    return app


class _Places:
    """Counts the free places for requests. Touched by the event loop alone."""

    def __init__(self, number: int) -> None:
        self.free = number

    def __enter__(self) -> None:
        self.free -= 1

    def __exit__(self, *_: object) -> None:
        self.free += 1


async def _receive(request: Request, max_bytes: int, timeout_s: float, *, keep: bool) -> bytes:
    """Return the body, empty unless `keep`; hold no more than `max_bytes` of it.

    A body that is refused is still read up to twice the limit: closing a connection on unread
    data resets it, and most clients would see that instead of the answer.
    """
    stated = request.headers.get("Content-Length", "0")
    if len(stated) > _LENGTH_DIGITS or (stated.isdecimal() and int(stated) > 2 * max_bytes):
        raise _RefusedError(413, _too_large(max_bytes))
    form = request.headers.get("Content-Type", "").startswith("multipart/")
    received, kept = 0, bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += len(chunk)
                if received > 2 * max_bytes:
                    break
                if keep and not form and received <= max_bytes:
                    kept += chunk
    except TimeoutError as error:
        raise _RefusedError(408, _slow(timeout_s)) from error
    if form:
        raise _RefusedError(415, _form())
    if received > max_bytes:
        raise _RefusedError(413, _too_large(max_bytes))
    return bytes(kept)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    """Turn what a request ended in into its answer; see the module's docstring."""
    match error:
        case _RefusedError():
            close = {"Connection": "close"} if error.status in _UNREAD else {}
            later = {"Retry-After": str(_RETRY_AFTER_S)} if error.status == _BUSY else {}
            return JSONResponse(_described(error.error), error.status, {**close, **later})
        case PictureError():
            return JSONResponse(_described(error), 422)
        case CloudError():
            _LOG.warning("upstream failed: %s", error)
            return JSONResponse(_withheld(error), 502)
        case PocketlensError():
            _LOG.error("backend failed: %s", error)
            return JSONResponse(_withheld(error), 500)
        case _:
            return JSONResponse({}, 400)  # the client is gone: nobody reads this


def _described(error: PocketlensError) -> dict[str, dict[str, str]]:
    kind = {"kind": error.kind} if isinstance(error, PictureError) else {}
    return {
        "error": {
            "type": type(error).__name__,
            **kind,
            "what": error.what,
            "expected": error.expected,
            "found": error.found,
            "remedy": error.remedy,
        }
    }


def _withheld(error: PocketlensError) -> dict[str, dict[str, str]]:
    """Describe `error` without its details: they name paths and addresses behind the service."""
    return _described(
        type(error)(
            "the service",
            expected="a caption from its backend",
            found="a failure, described in the service's log",
            remedy="Try again later, or tell whoever runs the service.",
        )
    )


def _too_large(max_bytes: int) -> PictureError:
    return PictureError(
        "the uploaded picture",
        kind="too_large",
        expected=f"at most {max_bytes:,} bytes",
        found="more",
        remedy="Send a smaller copy; pocketlens itself sends a few hundred pixels.",
    )


def _form() -> CloudError:
    return CloudError(
        "the request's body",
        expected="the picture itself",
        found="a multipart form",
        remedy="Send the bare file, for example with `curl --data-binary @picture.jpg`.",
    )


def _slow(timeout_s: float) -> CloudError:
    return CloudError(
        "the upload",
        expected=f"a whole picture within {timeout_s:g} s",
        found="a part of it",
        remedy="Send a smaller copy, or try again on a better connection.",
    )


def _busy() -> CloudError:
    return CloudError(
        "the service",
        expected="a free place in its queue",
        found="none",
        remedy=f"Try again in {_RETRY_AFTER_S} s.",
    )
