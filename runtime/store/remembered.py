"""What the store remembers of files: enough to tell what changed, and what was refused."""

import os

import apsw

from pocketlens.runtime.store.database import from_column, to_column
from pocketlens.runtime.store.filters import below
from pocketlens.runtime.store.models import Model
from pocketlens.runtime.store.rows import Known, Refused

__all__ = ["known_files", "refused_files"]


def known_files(
    connection: apsw.Connection, model: Model, folder: str | os.PathLike[str], *, tenant: str, itself: bool
) -> dict[str, Known]:
    """Return the files of `tenant` below `folder` that have rows of `model`, by path; see `Store.known`."""
    condition, bounds = below(folder)
    if itself:
        condition, bounds = f"({condition} OR f.file_id = ?)", [*bounds, to_column(os.fspath(folder))]
    rows = connection.execute(
        f"SELECT f.file_id, f.sha256, f.size_bytes, f.mtime_ns FROM files f WHERE f.tenant = ? AND {condition} "
        "AND EXISTS (SELECT 1 FROM entries e WHERE e.file = f.id AND e.model = ?)",
        (tenant, *bounds, model.id),
    )
    known = (Known(path=from_column(row[0]), sha256=row[1], size_bytes=row[2], mtime_ns=row[3]) for row in rows)
    return {item.path: item for item in known}


def refused_files(connection: apsw.Connection, tenant: str) -> list[Refused]:
    """Return the files of `tenant` that were refused when they were last looked at, sorted by path."""
    rows = connection.execute("SELECT path, kind, message FROM refused WHERE tenant = ?", (tenant,))
    found = [Refused(path=from_column(path), kind=str(kind), message=str(text)) for path, kind, text in rows]
    return sorted(found, key=lambda item: item.path)
