"""What goes into the store and what comes out of it."""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Hit", "Known", "Refused", "Row"]


class Row(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One indexed picture.

    Attributes:
        path: absolute path, the identity of the row.
        sha256: of the file's bytes, 32 bytes.
        size_bytes: of the file.
        mtime_ns: modification time, nanoseconds since 1970.
        vector: `(D,)` float32, unit norm.
        caption: the caption; `None` when the bundle cannot caption.
        confidence: of the caption, in [0, 1]; `None` when there is no caption.
    """

    path: str
    sha256: bytes
    size_bytes: int
    mtime_ns: int
    vector: "NDArray[np.float32]"
    caption: str | None = None
    confidence: float | None = None


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the store remembers of a file, enough to tell whether it has changed. Fields as in `Row`."""

    path: str
    sha256: bytes
    size_bytes: int
    mtime_ns: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was refused when it was last looked at.

    `kind` is one of `pocketlens.core.errors.PICTURE_KINDS`; `message` is the whole error.
    """

    path: str
    kind: str
    message: str


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to a search. `score` is the cosine of query and picture, in [-1, 1]."""

    path: str
    score: float
    caption: str | None
    confidence: float | None
