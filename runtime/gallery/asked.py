"""What the page may ask for, as JSON of fixed shape. No field is ever opened as a file."""

import os
from typing import Annotated, Final, TypeVar

import msgspec

from pocketlens.runtime.gallery.answers import RefusedRequest
from pocketlens.runtime.store.rows import Filter

__all__ = ["MAX_ANSWERS", "MAX_JSON_BYTES", "Erase", "Like", "Narrowed", "Nothing", "Search", "parsed"]

MAX_JSON_BYTES: Final = 64 * 2**10
MAX_ANSWERS: Final = 200

_Text = Annotated[str, msgspec.Meta(max_length=2_000)]
_Path = Annotated[str, msgspec.Meta(max_length=4_096)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
_Seconds = Annotated[int, msgspec.Meta(ge=-(2**40), le=2**40)]


class Narrowed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every question has.

    Attributes:
        k: how many answers.
        folder: only files below this folder, an absolute path; empty for all.
        album: only files of this album; empty for all.
        taken_from: taken at this time or later, seconds since 1970.
        taken_until: taken before this time.
    """

    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWERS)] = 24
    folder: _Path = ""
    album: _Text = ""
    taken_from: _Seconds | None = None
    taken_until: _Seconds | None = None

    def filter(self, tenant: str) -> Filter:
        """Return it as a filter on the rows of `tenant`."""
        return Filter(
            tenant=tenant,
            folder=os.path.normpath(self.folder) if self.folder else None,
            album=self.album or None,
            taken_from=self.taken_from,
            taken_until=self.taken_until,
        )


class Search(Narrowed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A search as in `pocketlens.runtime.finding.find`; a picture comes beside it."""

    text: _Text = ""
    unlike: _Text = ""
    hybrid: bool = False


class Like(Narrowed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """More like the row with this id."""

    id: _Id


class Erase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Erase the file of the row `id`, or all files of `album`: one of the two."""

    id: _Id | None = None
    album: Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)] | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question without details: `{}`."""


_Asked = TypeVar("_Asked", Search, Like, Erase, Nothing)


def parsed(body: bytes, kind: type[_Asked]) -> _Asked:
    """Return `body` as a `kind`.

    Raises:
        RefusedRequest: 400: no JSON, or of another shape.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedRequest(
            400,
            "the request",
            expected=f"JSON with the fields {', '.join(kind.__struct_fields__) or '(none)'}",
            found=str(error),
            remedy="Load the page again; it may be of another version.",
        ) from error
