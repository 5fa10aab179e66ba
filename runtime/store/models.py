"""The model versions that a store holds vectors of, and which one answers.

::

    (none) ── begin ──► shadow ── switch ──► active ── switch to the next ──► previous ── finish ──► (none)
                                              ▲                                  │
                                              └──────────── roll back ───────────┘

A `Store` is bound to one of them and never reads a row of another: two versions cannot meet in an answer.
"""

from pathlib import Path

import apsw
import msgspec

from pocketlens.core.errors import StoreError
from pocketlens.runtime.store.rows import Dtype

__all__ = ["Model", "active_model", "bound_model", "model_in_state"]


class Model(msgspec.Struct, frozen=True):
    """One row of `models`."""

    id: int
    version: str
    dim: int
    dtype: Dtype
    state: str


def model_in_state(connection: apsw.Connection, state: str) -> Model | None:
    """Return the model in `state`, if there is one."""
    row = connection.execute("SELECT id, version, dim, dtype, state FROM models WHERE state = ?", (state,)).get
    return None if row is None else Model(*row)


def active_model(connection: apsw.Connection, path: Path) -> Model:
    """Return the model that answers.

    Raises:
        StoreError: the store has none: it is damaged.
    """
    model = model_in_state(connection, "active")
    if model is None:
        raise StoreError(
            f"store {path}",
            expected="an undamaged store",
            found="no active model version",
            remedy="Move the file away and run `pocketlens index` again; the pictures are untouched.",
        )
    return model


def bound_model(
    connection: apsw.Connection, path: Path, *, model_version: str | None, dim: int | None, state: str = "active"
) -> Model:
    """Return the model in `state`, which must be the one that was asked for.

    Raises:
        StoreError: it is another one.
    """
    model = active_model(connection, path) if state == "active" else model_in_state(connection, state)
    if model is None:
        raise StoreError(
            f"store {path}",
            expected=f"a {state} model version",
            found="none",
            remedy="Begin an upgrade first: `pocketlens store upgrade`.",
        )
    if model_version not in {None, model.version} or dim not in {None, model.dim}:
        raise StoreError(
            f"store {path}",
            expected=f"vectors of model version {model_version} with {dim} dimensions",
            found=f"{model.version} with {model.dim} dimensions",
            remedy="Vectors of two models cannot be compared: load the bundle that this store was made "
            "with, bring the store to this one with `pocketlens store upgrade`, or index into a new file.",
        )
    return model
