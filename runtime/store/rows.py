"""What goes into the store and what comes out of it."""

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DTYPES", "Dtype", "Filter", "Hit", "Known", "Modality", "Receipt", "Refused", "Row", "Written"]

Dtype = Literal["fp32", "fp16", "int8", "binary"]
"""How vectors are kept. `binary` searches one bit a dimension and rescores with int8."""
DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "int8", "binary")

Modality = Literal["image", "text", "video"]


class Row(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One indexed picture, or one moment of a video: then a file has several rows, told apart by `at_ms`.

    Attributes:
        path: the file's id within its tenant; the absolute path for what an indexed folder holds.
        sha256: of the file's bytes, 32 bytes.
        size_bytes: of the file.
        mtime_ns: modification time, nanoseconds since 1970.
        vector: `(D,)` float32, unit norm.
        caption: the caption; `None` when the bundle cannot caption.
        confidence: of the caption, in [0, 1]; `None` when there is no caption.
        tenant: whose file it is; rows of two tenants never meet in one answer.
        version: of the file. A write of an older version than the store has is ignored.
        modality: what the vector was made from.
        at_ms: where in the file the row begins, milliseconds; 0 for a picture.
        until_ms: where it ends; `None` for a picture.
        album: a name that the file can be filtered and erased by.
        visibility: `visible` rows are found by default; others by a filter that names their word.
        taken_at: when the picture was taken, seconds since 1970; `None` when unknown.
    """

    path: str
    sha256: bytes
    size_bytes: int
    mtime_ns: int
    vector: "NDArray[np.float32]"
    caption: str | None = None
    confidence: float | None = None
    tenant: str = ""
    version: int = 0
    modality: Modality = "image"
    at_ms: int = 0
    until_ms: int | None = None
    album: str | None = None
    visibility: str = "visible"
    taken_at: int | None = None


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


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a write did, in files: `added`, `unchanged` (same version and checksum), `older` (ignored)."""

    added: int = 0
    unchanged: int = 0
    older: int = 0


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows a search looks at. Everything that is given must hold.

    Attributes:
        tenant: whose rows.
        folder: an absolute path; files below it.
        album: files of this album.
        visibility: words of which the row must have one.
        taken_from: taken at this time or later, seconds since 1970.
        taken_until: taken before this time. With either, rows without a time are left out.
        modality: made from this.
    """

    tenant: str = ""
    folder: str | None = None
    album: str | None = None
    visibility: tuple[str, ...] = ("visible",)
    taken_from: int | None = None
    taken_until: int | None = None
    modality: Modality | None = None


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to a search. Fields that are not explained are as in `Row`.

    Attributes:
        score: the cosine of query and row, in [-1, 1]; in a search by words alone, 0.
        id: of the row, for "more like this".
        fused: the reciprocal rank fusion's score, where a search used words as well.
    """

    path: str
    score: float
    caption: str | None
    confidence: float | None
    id: int = 0
    tenant: str = ""
    modality: str = "image"
    at_ms: int = 0
    until_ms: int | None = None
    album: str | None = None
    visibility: str = "visible"
    taken_at: int | None = None
    fused: float | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did and what was looked for afterwards.

    Attributes:
        id: of the receipt; the store's own list has the same one.
        erased_at: seconds since 1970.
        scope: `file`, `album` or `tenant`.
        subject_sha256: SHA-256 of what was named, hex. The store keeps no more of it than this.
        files: files that are gone.
        rows: rows that are gone, of all model versions.
        bytes_searched: of the store's files, after the erasure.
        patterns: pieces of the erased vectors and captions that were searched for.
        residues: of those, found. 0, or the erasure ends in a `StoreError` instead of a receipt.
        rewritten: whether the whole file had to be written anew to get there.
    """

    id: int
    erased_at: int
    scope: str
    subject_sha256: str
    files: int
    rows: int
    bytes_searched: int
    patterns: int
    residues: int
    rewritten: bool
