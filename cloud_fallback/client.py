"""The device's side of the caption service."""

import unicodedata
import uuid
from typing import Final, Self

import msgspec

from pocketlens.cloud_fallback.endpoint import Endpoint
from pocketlens.cloud_fallback.policy import Consent
from pocketlens.cloud_fallback.upload import minimised_jpeg
from pocketlens.core.errors import CloudError, ConsentRequired

__all__ = ["CloudAnswer", "CloudCaptioner", "cleaned_text"]

_MAX_CHARACTERS: Final = 1000


class CloudAnswer(msgspec.Struct, frozen=True):
    """What the service said: the caption, and the name of the model that wrote it."""

    text: str
    model: str


class CloudCaptioner:
    """Asks a `pocketlens serve` for captions. Safe to share between threads; close it when done.

    Args:
        url: address of the service, such as `https://captions.example`; `/v1/captions` is appended.
        timeout_s: how long one try may take, and how long retries may go on.
        attempts: number of tries, the first included.
        allow_http: accept an unencrypted connection to another machine.

    Raises:
        CloudError: the address cannot be used.
    """

    def __init__(self, url: str, *, timeout_s: float = 20.0, attempts: int = 3, allow_http: bool = False) -> None:
        self._endpoint = Endpoint(
            url.rstrip("/") + "/v1/captions",
            headers={"Content-Type": "image/jpeg", "User-Agent": "pocketlens"},
            timeout_s=timeout_s,
            attempts=attempts,
            allow_http=allow_http,
        )

    def caption(self, picture: bytes, *, consent: Consent, max_upload_px: int) -> CloudAnswer:
        """Return the service's caption of `picture`, of which only a small bare JPEG is sent.

        Args:
            picture: an encoded picture of any format that the device reads.
            consent: what the person agreed to; it must cover `captions`.
            max_upload_px: longest side of what is sent, in pixels.

        Raises:
            ConsentRequired: consent is not given; nothing was sent.
            PictureError: the picture cannot be decoded; nothing was sent.
            CloudError: no answer, or none that is a caption.
        """
        if not consent.covers("captions"):
            raise ConsentRequired(
                "sending a picture",
                expected="consent to send pictures to be captioned",
                found="none",
                remedy="Ask the person, and pass the consent on (`--consent` on the command line).",
            )
        upload = minimised_jpeg(picture, max_px=max_upload_px)
        # Random, not a digest: the key must hold retries together without telling that two
        # uploads show the same picture.
        body = self._endpoint.post(upload, headers={"Idempotency-Key": uuid.uuid4().hex})
        try:
            answer = msgspec.json.decode(body, type=CloudAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _no_caption(self._endpoint.url, str(error)) from error
        return CloudAnswer(
            cleaned_text(answer.text, self._endpoint.url), cleaned_text(answer.model, self._endpoint.url)
        )

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cleaned_text(text: str, url: str) -> str:
    """Return a text from a server on one line; it goes to terminals and pages.

    Raises:
        CloudError: it is empty, longer than 1000 characters, or holds control characters.
    """
    line = " ".join(text.split())
    if not 0 < len(line) <= _MAX_CHARACTERS:
        raise _no_caption(url, f"a text of {len(line)} characters")
    # Cc, Cs: escape sequences and halves of characters. Cf stays: emoji and some scripts need it.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in line):
        raise _no_caption(url, "a text with control characters")
    return line


def _no_caption(url: str, found: str) -> CloudError:
    return CloudError(
        f"the answer of {url}",
        expected=f"a caption of 1..{_MAX_CHARACTERS} characters as JSON",
        found=found,
        remedy="Check that the address belongs to a caption service of this kind.",
    )
