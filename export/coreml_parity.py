"""Parity of CoreML graphs without a Mac: the saved package, interpreted in torch, against the eager student.

The interpreter is slow, so a part of the pictures and texts is taken; the record's `samples` says how many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.export.mil.engine import PARITY_NOTE, MilEngine
from pocketlens.export.parity import measure_parity
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.stand_in import Patched, StandIn

__all__ = ["coreml_parity", "part_of"]

Row = TypeVar("Row")


def coreml_parity(
    records: Mapping[Role, GraphRecord],
    bundle: Bundle,
    *,
    reference: Reference,
    rows: Mapping[Role, Feed],
    samples: int,
    stand_in: StandIn | None = None,
) -> tuple[dict[Role, GraphRecord], dict[Role, str]]:
    """Return the records of one variant with parity and a note on what it proves, and why others have none.

    A graph that the interpreter cannot run (an operator that it does not know, for one) is no worse for
    that: its record gets a note instead of figures, and the eager student answers in its place while
    captions are compared.

    Args:
        records: by role.
        bundle: the folder that the records' paths are relative to, and the layout of captions and tokens.
        reference: the eager student's answers.
        rows: an input of batch 1 for each role.
        samples: how many of the reference's pictures and texts are compared; 0 measures nothing.
        stand_in: see `pocketlens.export.stand_in`; needed if a graph of a captioning model cannot be run.

    Raises:
        EngineError: a graph cannot be run, and there is no `stand_in`.
    """
    filled, unmeasured = dict(records), dict[Role, str]()
    if samples == 0:
        return filled, dict.fromkeys(records, "the recipe's coreml_samples is 0")
    engine = MilEngine(bundle, records)
    for role in records:
        try:
            engine.run(role, rows[role])
        except EngineError as error:
            if stand_in is None:
                raise
            unmeasured[role] = f"{error.found}; expected {error.expected}"
            note = f"Parity was not measured: {unmeasured[role]}. Check this graph on a device (docs/coreml.md)."
            filled[role] = msgspec.structs.replace(records[role], notes=(*records[role].notes, note))
    able = frozenset(records) - unmeasured.keys()
    if able:
        runner = engine if stand_in is None else Patched(engine, able, stand_in)
        parity = measure_parity(runner, part_of(reference, samples), bundle.manifest)
        for role in able:
            notes = (*records[role].notes, PARITY_NOTE)
            filled[role] = msgspec.structs.replace(records[role], parity=parity[role], notes=notes)
    return filled, unmeasured


def part_of(reference: Reference, samples: int) -> Reference:
    """Return at most `samples` of the pictures and of the texts, evenly spaced, with their answers."""
    pictures, texts = _spaced(len(reference.pixels), samples), _spaced(len(reference.ids), samples)
    captioned = bool(reference.captions)
    return replace(
        reference,
        pixels=reference.pixels[pictures],
        ids=reference.ids[texts],
        embeddings=reference.embeddings[pictures],
        text_embeddings=reference.text_embeddings[texts],
        visual_tokens=reference.visual_tokens[pictures] if captioned else reference.visual_tokens,
        caches=reference.caches[pictures] if captioned else reference.caches,
        captions=_picked(reference.captions, pictures) if captioned else reference.captions,
    )


def _spaced(count: int, samples: int) -> list[int]:
    taken = min(count, samples)
    return [int(index) for index in np.arange(taken) * count // max(taken, 1)]


def _picked(rows: Sequence[Row], indices: Sequence[int]) -> list[Row]:
    return [rows[index] for index in indices]
