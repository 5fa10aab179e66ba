"""The list of everything that curation left out."""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

__all__ = ["Dropped", "Ledger"]


class Dropped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that was left out.

    Attributes:
        name: the record, as its source calls it.
        split: where it was.
        reason: for a record `missing`, `malformed` or a kind of `PictureError`; for a picture `duplicate`,
            `near_duplicate` or `leak`; for a caption one of `cleaning.CAPTION_FAULTS` or `repeated`; `no_caption` for a
            picture that has none left.
        detail: more about it: the message, the picture that it repeats, or the start of the caption.
    """

    name: str
    split: str
    reason: str
    detail: str = ""


class Ledger:
    """Writes one `Dropped` a line and counts the reasons. A context manager.

    Args:
        path: the file; an old one is replaced.

    Attributes:
        path: the file.
        reasons: how often each was given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def drop(self, name: str, split: str, reason: str, detail: str = "") -> None:
        """Note that something was left out."""
        self.reasons[reason] += 1
        line = msgspec.json.encode(Dropped(name=name, split=str(split), reason=reason, detail=detail))
        self._file.write(line + b"\n")

    def summary(self) -> str:
        """Return the reasons with their counts, the most frequent first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common()) or "nothing dropped"
