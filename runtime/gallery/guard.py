"""Who may ask: somebody on this machine who was given the address, with a page of this server and no other.

A server on loopback can be reached by every page that the browser shows and by every user of the machine. So:

* The address that is printed has a token that opens the page once; the browser then has a cookie that scripts cannot
  read and that other sites cannot send (`HttpOnly`, `SameSite=Strict`).
* `Host` must be the address itself: a name that an attacker lets point here (DNS rebinding) is refused.
* `Origin` must be this server's wherever a request changes or reads something by POST, and `Sec-Fetch-Site`, where
  the browser sends it, must not speak of another site: other ports of this machine are the same *site* to a cookie.
"""

import hmac
import secrets
import threading
from email.message import Message
from typing import Final

from pocketlens.runtime.gallery.answers import RefusedRequest

__all__ = ["Guard"]

_HTTP_PORT: Final = 80


class Guard:
    """The rules for one running server.

    Args:
        host: the address it listens on, `127.0.0.1` or `::1`.
        port: its port.
    """

    def __init__(self, host: str, port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        self._hosts = {f"{name}:{port}"} | ({name} if port == _HTTP_PORT else set[str]())
        # Cookies do not tell ports apart: two galleries must not overwrite each other's.
        self._cookie_name = f"pocketlens_gallery_{port}"
        self._session = secrets.token_urlsafe(32)
        self._token = secrets.token_urlsafe(32)
        self._token_left = True
        self._lock = threading.Lock()
        self.origin = f"http://{name}" if port == _HTTP_PORT else f"http://{name}:{port}"

    @property
    def url(self) -> str:
        """The address that opens the page, once."""
        return f"{self.origin}/open?token={self._token}"

    @property
    def cookie(self) -> str:
        """The `Set-Cookie` of a browser that was let in. It ends with the browser's session."""
        return f"{self._cookie_name}={self._session}; Path=/; HttpOnly; SameSite=Strict"

    def check_origin(self, headers: Message, *, reads: bool) -> None:
        """Refuse what no page of this server asked for.

        Args:
            headers: of the request.
            reads: a GET, which browsers send without an `Origin` where the page is the same one's.

        Raises:
            RefusedRequest: 421 for another `Host`, 403 for another origin.
        """
        hosts = headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise RefusedRequest(
                421,
                "the Host of the request",
                expected=" or ".join(sorted(self._hosts)),
                found=", ".join(hosts)[:80] or "none",
                remedy="Open the address that `pocketlens gallery` printed.",
            )
        origins = headers.get_all("Origin") or []
        if origins != [self.origin] and (origins or not reads):
            raise _foreign("the Origin of the request", self.origin, ", ".join(origins))

    def check_site(self, headers: Message) -> None:
        """Refuse a request that the browser itself calls another page's.

        Raises:
            RefusedRequest: 403.
        """
        site = headers.get("Sec-Fetch-Site", "same-origin")
        if site not in {"same-origin", "none"}:
            raise _foreign("the page that sent the request", "a page of this server", site)

    def check_session(self, headers: Message) -> None:
        """Refuse whoever has not opened the printed address.

        Raises:
            RefusedRequest: 403.
        """
        if not self.knows(headers):
            raise RefusedRequest(
                403,
                "the session",
                expected="a browser that opened the printed address",
                found="no cookie of this run, or another one's",
                remedy="Open the address that `pocketlens gallery` printed; start it again if it was used already.",
            )

    def knows(self, headers: Message) -> bool:
        """Whether the request has this run's cookie."""
        pairs = [part.strip().partition("=") for part in headers.get("Cookie", "").split(";")]
        return any(name == self._cookie_name and _equal(value, self._session) for name, _, value in pairs)

    def use_token(self, token: str) -> None:
        """Let in whoever has the token, the first time.

        Raises:
            RefusedRequest: 403: another token, or used already.
        """
        with self._lock:
            right = _equal(token, self._token)
            if right and self._token_left:
                self._token_left = False
                return
        raise RefusedRequest(
            403,
            "the token of the address",
            expected="the one that `pocketlens gallery` printed, opened for the first time",
            found="one that was used already" if right else "another one",
            remedy="Start `pocketlens gallery` again and open the address that it prints.",
        )


def _foreign(what: str, expected: str, found: str) -> RefusedRequest:
    return RefusedRequest(
        403,
        what,
        expected=expected,
        found=found[:80] or "none",
        remedy="Use the page that this server shows; other pages may not ask.",
    )


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())
