"""One HTTP address to which things are posted: bounded in time, tries and answer, typed in failure."""

import ipaddress
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Final, Self

import httpx
import stamina

from pocketlens.core.errors import CloudError

__all__ = ["Endpoint"]

_MAX_ANSWER_BYTES: Final = 256 * 1024
_MAX_BACKOFF_S: Final = 5.0
_BUSY: Final = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class _BusyError(Exception):
    """The server asked to come back later; `after_s` says when, if it said so."""

    def __init__(self, status: int, after_s: float | None) -> None:
        super().__init__(f"status {status}")
        self.after_s = after_s


class Endpoint:
    """Posts to one URL. Safe to share between threads.

    A post is tried again only where nothing was done with it: the connection could not be made, or
    the answer was 429 or 503 (whose `Retry-After` is heeded up to 5 s). Redirects are not followed:
    a picture goes where it was addressed to, or nowhere.

    Args:
        url: full address; plain http is accepted for this machine only, unless `allow_http`.
        headers: sent with every post.
        timeout_s: how long one try may take after connecting, and how long retries may go on.
        connect_timeout_s: how long connecting may take.
        attempts: number of tries, the first included.
        allow_http: accept an unencrypted connection to another machine.

    Raises:
        CloudError: the address or a header cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        connect_timeout_s: float = 5.0,
        attempts: int = 3,
        allow_http: bool = False,
    ) -> None:
        self.url = _checked_url(url, allow_http=allow_http)
        self._timeout_s = timeout_s
        self._attempts = attempts
        _check_headers(headers)
        self._client = httpx.Client(
            # Identity: a compressed answer could unfold to any size.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            follow_redirects=False,
            verify=_certificates(),
        )

    def post(self, content: bytes, *, headers: Mapping[str, str]) -> bytes:
        """Return the body of the answer, at most 256 KiB, to `content`.

        Raises:
            CloudError: no connection, no answer in time, or an answer other than success.
        """
        tries = stamina.retry_context(
            on=_backoff, attempts=self._attempts, timeout=self._timeout_s, wait_max=_MAX_BACKOFF_S
        )
        try:
            for attempt in tries:
                with attempt:
                    return self._post_once(content, headers)
        except (httpx.HTTPError, _BusyError) as error:
            raise self._failed(f"{type(error).__name__.strip('_')}: {error}") from error
        raise self._failed("no attempt was made")

    def _post_once(self, content: bytes, headers: Mapping[str, str]) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        with self._client.stream("POST", self.url, content=content, headers=dict(headers)) as answer:
            if answer.status_code in _BUSY:
                raise _BusyError(answer.status_code, _retry_after_s(answer.headers))
            body = bytearray()
            # Each read has a time-out of its own; the deadline stops a server that only drips.
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    raise self._failed("an answer without end")
        if not answer.is_success:
            raise self._failed(f"status {answer.status_code}, {_excerpt(body)}")
        return bytes(body)

    def _failed(self, found: str) -> CloudError:
        return CloudError(
            f"the service at {self.url}",
            expected="an answer with status 200",
            found=found,
            remedy="Check that the service is up and that its address and key are right.",
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates: loading them takes 30 ms and more, so they are loaded once."""
    return httpx.create_ssl_context()


def _backoff(error: Exception) -> bool | float:
    if isinstance(error, _BusyError):
        return True if error.after_s is None else min(error.after_s, _MAX_BACKOFF_S)
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


def _excerpt(body: bytes | bytearray) -> str:
    text = body[:200].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text).strip() or "no text"


def _checked_url(url: str, *, allow_http: bool) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _bad_url(url, str(error)) from error
    if parsed.userinfo:
        raise _bad_url(str(parsed.copy_with(userinfo=b"")), "a user name or password in front of the host")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _bad_url(url, "no such scheme and host")
    if parsed.scheme == "http" and not allow_http and not _is_this_machine(parsed.host):
        raise _bad_url(url, "an unencrypted connection to another machine")
    return str(parsed)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bad_url(url: str, found: str) -> CloudError:
    return CloudError(
        f"address {url!r}",
        expected="https://HOST/…, or http://… on this machine",
        found=found,
        remedy="Correct the address, or allow plain http where the network between is yours.",
    )


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise CloudError(
                f"header {name}",
                expected="printable ASCII characters",
                found="something else (not shown: it may be a key)",
                remedy="Set the key again, without line breaks.",
            )
