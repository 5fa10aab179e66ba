"""The gallery over HTTP, on loopback only. Every answer forbids the browser to load anything from elsewhere."""

import re
import socket
import socketserver
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pocketlens.core.errors import DataError, PocketlensError
from pocketlens.runtime.gallery.answers import RefusedRequest, encoded, status_of
from pocketlens.runtime.gallery.asked import MAX_JSON_BYTES, Erase, Like, Nothing, Search, parsed
from pocketlens.runtime.gallery.assets import Asset, page_assets
from pocketlens.runtime.gallery.gallery import Gallery
from pocketlens.runtime.gallery.guard import Guard
from pocketlens.runtime.gallery.thumbnails import PREVIEW_PX, THUMBNAIL_PX

__all__ = ["HEADERS", "LOOPBACK", "GalleryServer"]

LOOPBACK: Final = ("127.0.0.1", "::1")
"""The only addresses that are served."""
HEADERS: Final[Mapping[str, str]] = {
    # blob: is the picture that somebody searches with, shown beside the search.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # What was erased must not stay in the browser's cache.
    "Cache-Control": "no-store",
}
"""Sent with every answer."""
_SIDES: Final = {"thumbnails": THUMBNAIL_PX, "previews": PREVIEW_PX}
_PICTURE = re.compile(r"/(thumbnails|previews)/([0-9]{1,18})")
_SILENT_S: Final = 30.0
"""A connection that says nothing for so long is closed."""
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
# A redirect would keep the site of whoever held the link, and a strict cookie would not be sent along; a page that
# goes on by itself is of our own site.
_ENTRY: Final = (
    b"<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content='0; url=/'>"
    b"<title>pocketlens gallery</title><p><a href='/'>Open the gallery</a></p></html>"
)


class GalleryServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers. Use it as a context manager.

    Args:
        gallery: what it shows; closed by whoever opened it.
        host: one of `LOOPBACK`.
        port: 0 takes a free one.

    Attributes:
        url: the address that opens the page, once.

    Raises:
        DataError: the address is not a loopback one, or the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, gallery: Gallery, *, host: str = "127.0.0.1", port: int = 0) -> None:
        if host not in LOOPBACK:
            raise DataError(
                f"address {host}",
                expected=" or ".join(LOOPBACK),
                found="another one",
                remedy="The gallery is for this machine only; reach it from elsewhere through an SSH tunnel.",
            )
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.gallery = gallery
        self.assets = page_assets()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise DataError(
                f"port {port} of {host}",
                expected="a port that nobody listens on",
                found=error.strerror or str(error),
                remedy="Take another one with `--port`, or 0 for any free one.",
            ) from error
        self.guard = Guard(host, self.server_port)
        self.url = self.guard.url

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as `HTTPServer` would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that went away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "pocketlens"
    sys_version = ""
    timeout = _SILENT_S
    # Head and body in one piece: two would wait 40 ms for the browser's acknowledgement between them (Nagle).
    wbufsize = -1
    disable_nagle_algorithm = True
    server: GalleryServer

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answering(self._get)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answering(self._post)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing: an address has the token in it."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send what `http.server` refuses by itself as typed JSON too."""
        phrase = message or HTTPStatus(code).phrase
        self._refuse(
            RefusedRequest(code, "the request", expected="a GET or a POST", found=phrase, remedy="Use the page.")
        )

    def _answering(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except RefusedRequest as refusal:
            self._refuse(refusal)
        except PocketlensError as error:
            self._send(status_of(error), _JSON, encoded(error.fields()))

    def _refuse(self, refusal: RefusedRequest) -> None:
        # What else was sent has not been read, so the connection cannot be used again.
        self.close_connection = True
        self._send(refusal.status, _JSON, encoded(refusal.error.fields()))

    def _get(self) -> None:
        guard, target = self.server.guard, urlsplit(self.path)
        guard.check_origin(self.headers, reads=True)
        if target.path == "/open":
            # The only address that another page may link to.
            if not guard.knows(self.headers):
                guard.use_token(parse_qs(target.query).get("token", [""])[0])
            self._send(200, "text/html; charset=utf-8", _ENTRY, cookie=guard.cookie)
            return
        guard.check_site(self.headers)
        guard.check_session(self.headers)
        if target.path == "/api/status":
            self._send(200, _JSON, encoded(self.server.gallery.status()))
            return
        asset = self.server.assets.get(self.path) or self._jpeg()
        if asset is None:
            raise _unknown(self.path)
        self._send(200, asset.content_type, asset.data)

    def _jpeg(self) -> Asset | None:
        wanted = _PICTURE.fullmatch(self.path)
        if wanted is None:
            return None
        return Asset("image/jpeg", self.server.gallery.jpeg(int(wanted[2]), _SIDES[wanted[1]]))

    def _post(self) -> None:
        guard, gallery = self.server.guard, self.server.gallery
        guard.check_origin(self.headers, reads=False)
        guard.check_site(self.headers)
        guard.check_session(self.headers)
        target = urlsplit(self.path)
        if target.path == "/api/search/picture":
            asked = parsed(parse_qs(target.query).get("asked", ["{}"])[0].encode("utf-8", "replace"), Search)
            self._check_type(_BYTES)
            picture = self._body(gallery.max_picture_bytes)
            self._send(200, _JSON, encoded(gallery.search(asked, picture)))
            return
        changes: dict[str, Callable[[bytes], Any]] = {
            "/api/search": lambda body: gallery.search(parsed(body, Search)),
            "/api/like": lambda body: gallery.like(parsed(body, Like)),
            "/api/erase": lambda body: gallery.erase(parsed(body, Erase)),
            "/api/upgrade/start": _plain(gallery.start_upgrade),
            "/api/upgrade/stop": _plain(gallery.stop_upgrade),
            "/api/upgrade/cancel": _plain(gallery.cancel_upgrade),
            "/api/upgrade/switch": _plain(gallery.switch),
            "/api/upgrade/rollback": _plain(gallery.roll_back),
            "/api/upgrade/finish": _plain(gallery.finish_upgrade),
        }
        if self.path not in changes:
            raise _unknown(self.path)
        self._check_type(_JSON)
        self._send(200, _JSON, encoded(changes[self.path](self._body(MAX_JSON_BYTES))))

    def _check_type(self, wanted: str) -> None:
        # Types that a form of another page cannot send: a browser would have to ask us first, and we say no.
        if self.headers.get_content_type() != wanted or "Content-Type" not in self.headers:
            found = self.headers.get("Content-Type", "none")[:80]
            raise RefusedRequest(
                415, "the type of the request", expected=wanted, found=found, remedy="Send it as the page does."
            )

    def _body(self, most: int) -> bytes:
        """Return the body of the request.

        Raises:
            RefusedRequest: 411 without a length, 413 for more than `most` bytes, 400 when it ends early.
        """
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            raise RefusedRequest(
                411,
                "the length of the request",
                expected="one Content-Length in bytes",
                found=", ".join(lengths)[:80] or "none",
                remedy="Send it as the page does.",
            )
        length = int(lengths[0])
        if length > most:
            raise RefusedRequest(
                413,
                "the request",
                expected=f"at most {most} bytes",
                found=f"{length} bytes",
                remedy="Take a smaller picture." if most > MAX_JSON_BYTES else "Ask for less.",
            )
        body = self.rfile.read(length)
        if len(body) < length:
            raise RefusedRequest(
                400, "the request", expected=f"{length} bytes", found=f"{len(body)} bytes", remedy="Send it again."
            )
        return body

    def _send(self, status: int, content_type: str, body: bytes, *, cookie: str = "") -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _plain(answer: Callable[[], Any]) -> Callable[[bytes], Any]:
    def answered(body: bytes) -> Any:
        parsed(body, Nothing)
        return answer()

    return answered


def _unknown(path: str) -> RefusedRequest:
    return RefusedRequest(
        404, "the address", expected="a part of the page", found=path[:80], remedy="Open the page itself: /"
    )
