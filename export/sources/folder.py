"""What direct sources have in common: who the model is, its hash, and one way to say that it cannot be read."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from torch import Tensor

from pocketlens.core.errors import ExportError, PocketlensError

__all__ = ["UNKNOWN_LICENCE", "Card", "config_text", "digest_of", "read_card", "source_errors"]

UNKNOWN_LICENCE: Final = "unknown"
_CARD: Final = "teacher.json"
_READING: Final = ("_name_or_path", "transformers_version")


class Card(msgspec.Struct, frozen=True):
    """`teacher.json` beside the weights: the model's name and the licence that it came under."""

    id: str
    licence: str


def read_card(folder: Path | None, *, default_id: str) -> Card:
    """Return the card in `folder`; without folder or card `default_id` and the licence `unknown`.

    Raises:
        ExportError: the card is malformed.
    """
    if folder is None or not (folder / _CARD).exists():
        return Card(id=default_id, licence=UNKNOWN_LICENCE)
    with source_errors(str(folder), f"a readable {_CARD}"):
        return msgspec.json.decode((folder / _CARD).read_bytes(), type=Card)


def config_text(config: Any) -> str:
    """Return a transformers configuration as text, without where and with what it was read."""
    plain = {name: value for name, value in config.to_dict().items() if name not in _READING}
    return json.dumps(plain, sort_keys=True, default=str)


def digest_of(weights: Mapping[str, Tensor], *texts: str) -> str:
    """Return the SHA-256 over names, shapes and bytes of `weights` and over `texts` (configuration, tokenizer)."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).numpy().tobytes())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


@contextmanager
def source_errors(what: str, expected: str) -> Iterator[None]:
    """Turn whatever a model library raises while it reads `what` into `ExportError`.

    The libraries raise nearly everything here (OSError, KeyError, RuntimeError, safetensors' and pickle's own, hub
    errors), so the whole of `Exception` is translated; the cause stays attached. Our own errors pass through.
    """
    try:
        yield
    except PocketlensError:
        raise
    except Exception as error:
        raise ExportError(
            f"source {what}",
            expected=expected,
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            remedy="Check the name, and that the folder is complete; without a network only local folders and "
            "models in the library's cache can be opened.",
        ) from error
