"""What can stand behind the caption service."""

import base64
from typing import Final, Protocol

import msgspec

from pocketlens.cloud_fallback.client import cleaned_text
from pocketlens.cloud_fallback.endpoint import Endpoint
from pocketlens.cloud_fallback.upload import minimised_jpeg
from pocketlens.core.captions import Caption
from pocketlens.core.errors import CloudError

__all__ = ["DEFAULT_PROMPT", "BundleBackend", "CaptionBackend", "CaptionsPictures", "OpenAIUpstream"]

DEFAULT_PROMPT: Final = (
    "Describe this picture in one short, plain sentence. Name only what can be seen. Answer with the sentence alone."
)
"""What an OpenAI-compatible upstream is asked."""


class CaptionBackend(Protocol):
    """Captions one picture. Called in a thread, by as many threads at once as the app has workers."""

    @property
    def model(self) -> str:
        """Name of the model that answers; it goes into every answer."""
        ...

    def caption(self, picture: bytes) -> str:
        """Return a caption of the encoded `picture`, which comes from a stranger.

        Raises:
            PictureError: the picture was refused.
            CloudError: what stands behind the backend failed.
        """
        ...


class CaptionsPictures(Protocol):
    """The one method of a `pocketlens.runtime.Lens` that `BundleBackend` calls."""

    def caption(self, picture: bytes, /) -> Caption:
        """Return the caption of an encoded picture."""
        ...


class BundleBackend:
    """Captions with a bundle on this machine.

    Args:
        lens: an open `Lens`, without a fallback of its own.
        model: the bundle's model version.
    """

    def __init__(self, lens: CaptionsPictures, *, model: str) -> None:
        self.model = model
        self._lens = lens

    def caption(self, picture: bytes) -> str:
        """Return the lens's caption; empty if it abstained."""
        return self._lens.caption(picture).text


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class OpenAIUpstream:
    """Captions through any server that speaks OpenAI's chat completions: vLLM, SGLang, a hosted one.

    What goes upstream is a small JPEG without metadata, as from the device.

    Args:
        url: base address, such as `http://127.0.0.1:8001/v1`.
        model: the model's name there.
        api_key: sent as bearer token; empty for none.
        prompt: what is asked.
        max_upload_px: longest side of what is sent, in pixels.
        max_tokens: longest answer.
        timeout_s: how long one try may take, and how long retries may go on.
        allow_http: accept an unencrypted connection to another machine.

    Raises:
        CloudError: the address or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api_key: str = "",
        prompt: str = DEFAULT_PROMPT,
        max_upload_px: int = 768,
        max_tokens: int = 64,
        timeout_s: float = 60.0,
        allow_http: bool = False,
    ) -> None:
        self.model = model
        self._prompt = prompt
        self._max_upload_px = max_upload_px
        self._max_tokens = max_tokens
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._endpoint = Endpoint(
            url.rstrip("/") + "/chat/completions",
            headers={"Content-Type": "application/json", **key},
            timeout_s=timeout_s,
            allow_http=allow_http,
        )

    def caption(self, picture: bytes) -> str:
        """Return the upstream's caption.

        Raises:
            PictureError: the picture was refused; nothing was sent.
            CloudError: no answer, or none that is a caption.
        """
        jpeg = minimised_jpeg(picture, max_px=self._max_upload_px)
        body = self._endpoint.post(msgspec.json.encode(self._request(jpeg)), headers={})
        try:
            choices = msgspec.json.decode(body, type=_Completion).choices
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._unlike_a_completion(str(error)) from error
        if not choices:
            raise self._unlike_a_completion("no choices")
        return cleaned_text(choices[0].message.content, self._endpoint.url)

    def _request(self, jpeg: bytes) -> dict[str, object]:
        picture = {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
        content = [{"type": "text", "text": self._prompt}, {"type": "image_url", "image_url": picture}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }

    def _unlike_a_completion(self, found: str) -> CloudError:
        return CloudError(
            f"the answer of {self._endpoint.url}",
            expected="a chat completion with one choice",
            found=found,
            remedy="Check that the address ends in the API's base path, usually /v1.",
        )

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()
