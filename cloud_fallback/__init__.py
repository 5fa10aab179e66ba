"""Asking the cloud for a better caption: only when unsure, only with consent, never more than needed.

`CloudCaptioner` needs httpx and stamina, so it is imported when it is first asked for; the service
(FastAPI) lives in `pocketlens.cloud_fallback.service`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pocketlens.cloud_fallback.fallback import PolicyFallback
from pocketlens.cloud_fallback.policy import FALLBACK_REASONS, Consent, Decision, FallbackPolicy
from pocketlens.core.errors import CloudError

if TYPE_CHECKING:
    from pocketlens.cloud_fallback.client import CloudAnswer, CloudCaptioner

__all__ = [
    "FALLBACK_REASONS",
    "CloudAnswer",
    "CloudCaptioner",
    "Consent",
    "Decision",
    "FallbackPolicy",
    "PolicyFallback",
]


def __getattr__(name: str) -> object:
    if name not in ("CloudAnswer", "CloudCaptioner"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("pocketlens.cloud_fallback.client"), name)
    except ModuleNotFoundError as error:
        raise CloudError(
            "the cloud client",
            expected="the packages httpx and stamina",
            found=f"no module {error.name}",
            remedy="Install them with `pip install httpx stamina`.",
        ) from error
