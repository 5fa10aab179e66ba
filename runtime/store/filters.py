"""A `Filter` as SQL over `files f` and `entries e`."""

import os

from pocketlens.runtime.store.database import to_column
from pocketlens.runtime.store.rows import Filter

__all__ = ["below", "conditions"]


def conditions(wanted: Filter) -> tuple[str, list[object]]:
    """Return a condition on `f` and `e` and its parameters."""
    parts: list[str] = ["f.tenant = ?"]
    values: list[object] = [wanted.tenant]
    if wanted.folder is not None:
        part, bounds = below(wanted.folder)
        parts.append(part)
        values += bounds
    if wanted.album is not None:
        parts.append("f.album = ?")
        values.append(wanted.album)
    parts.append(f"f.visibility IN ({','.join('?' * len(wanted.visibility))})")
    values += wanted.visibility
    if wanted.taken_from is not None:
        parts.append("f.taken_at >= ?")
        values.append(wanted.taken_from)
    if wanted.taken_until is not None:
        parts.append("f.taken_at < ?")
        values.append(wanted.taken_until)
    if wanted.modality is not None:
        parts.append("e.modality = ?")
        values.append(wanted.modality)
    return " AND ".join(parts), values


def below(folder: str | os.PathLike[str]) -> tuple[str, list[object]]:
    """Return a condition on `f.file_id` for the files below `folder`, an absolute path.

    A range and not LIKE: it can use the index, and no character has a meaning of its own. Names that are
    not valid UTF-8 are stored as bytes and need a range of their own.
    """
    prefix = os.path.join(os.fspath(folder), "")
    raw = os.fsencode(prefix)
    end = raw[:-1] + bytes([raw[-1] + 1])
    text = to_column(prefix)
    if isinstance(text, bytes):
        return "(f.file_id >= ? AND f.file_id < ?)", [raw, end]
    return (
        "((f.file_id >= ? AND f.file_id < ?) OR (f.file_id >= ? AND f.file_id < ?))",
        [text, end.decode("utf-8"), raw, end],
    )
