"""The caption service that `pocketlens serve` runs: one endpoint, any backend behind it."""

from importlib import import_module
from typing import TYPE_CHECKING

from pocketlens.core.errors import CloudError

if TYPE_CHECKING:
    from pocketlens.cloud_fallback.service.app import create_app
    from pocketlens.cloud_fallback.service.backends import BundleBackend, CaptionBackend, OpenAIUpstream
    from pocketlens.cloud_fallback.service.server import serve

__all__ = ["BundleBackend", "CaptionBackend", "OpenAIUpstream", "create_app", "serve"]

_HOMES = {
    "BundleBackend": "backends",
    "CaptionBackend": "backends",
    "OpenAIUpstream": "backends",
    "create_app": "app",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise CloudError(
            "the caption service",
            expected="the packages of the extra [service]",
            found=f"no module {error.name}",
            remedy='Install them with `pip install "pocketlens[service]"`.',
        ) from error
