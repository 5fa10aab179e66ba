"""What the server says back: JSON, and errors in the words of the command line with an HTTP status."""

import json
from typing import Any, Final

import msgspec

from pocketlens.core.errors import BundleError, DataError, PictureError, PocketlensError, StorageFull, StoreError

__all__ = ["RefusedRequest", "encoded", "status_of"]

_STATUS: Final[tuple[tuple[type[PocketlensError], int], ...]] = (
    (PictureError, 422),
    (StorageFull, 507),
    (StoreError, 409),
    (BundleError, 409),
    (DataError, 400),
)


class RefusedRequest(Exception):
    """A request is not answered: an HTTP status and the typed error that says why."""

    def __init__(self, status: int, what: str, *, expected: str, found: str, remedy: str) -> None:
        self.status = status
        self.error = DataError(what, expected=expected, found=found, remedy=remedy)
        super().__init__(str(self.error))


def status_of(error: PocketlensError) -> int:
    """Return the HTTP status (RFC 9110, section 15; 507 is RFC 4918's) that goes with `error`."""
    if isinstance(error, PictureError) and error.kind == "missing":
        return 404
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def encoded(value: Any) -> bytes:
    """Return `value` as JSON in ASCII: names that are no valid UTF-8 are escaped and can be read back."""
    return json.dumps(msgspec.to_builtins(value)).encode("ascii")
