"""Parity of CoreML graphs inside an export: measured, unknown and said so, or left out on request."""

from pathlib import Path

import numpy as np
import pytest

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.export.coreml_parity import coreml_parity, part_of
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import graph_path
from pocketlens.export.measure import graph_records, measured
from pocketlens.export.mil import table
from pocketlens.export.mil.engine import PARITY_NOTE
from pocketlens.export.outcomes import GraphOutcome, OutcomeLog
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.stand_in import eager_answers
from pocketlens.export.targets.coreml import CoremlTarget

_VARIANT = "coreml-fp16"


@pytest.fixture(scope="module")
def text(graphs: dict[Role, Graph], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Role, GraphRecord]]:
    """The tiny text encoder as a package, and its record without figures."""
    root = tmp_path_factory.mktemp("text")
    path = root / graph_path(_VARIANT, "text_encoder")
    path.parent.mkdir(parents=True)
    CoremlTarget().export(graphs["text_encoder"], {"fp16": path}, [])
    (record,) = graph_records(_VARIANT, root, graphs, roles=["text_encoder"])
    return root, {"text_encoder": record}


def test_parity_is_measured_on_a_part_and_says_what_it_proves(
    text: tuple[Path, dict[Role, GraphRecord]],
    bundle: Bundle,
    graphs: dict[Role, Graph],
    feeds: dict[Role, list[Feed]],
    reference: Reference,
) -> None:
    root, records = text
    told: list[str] = []
    filled = measured(
        {_VARIANT: list(records.values())}, {_VARIANT: root}, manifest=bundle.manifest, reference=reference,
        rows={role: found[0] for role, found in feeds.items()}, runs=3, progress=told.append,
        stand_in=eager_answers(graphs), coreml_samples=3,
    )  # fmt: skip
    (record,) = filled[_VARIANT]
    assert record.parity is not None
    assert (record.parity.metric, record.parity.samples) == ("cosine", 3)
    assert 0.9999 < record.parity.minimum < 1
    assert record.notes[-1] == PARITY_NOTE
    assert record.latency is None
    assert told == [f"parity of {_VARIANT}"]


def test_an_unknown_operator_leaves_a_note_and_stops_nothing(
    text: tuple[Path, dict[Role, GraphRecord]],
    bundle: Bundle,
    graphs: dict[Role, Graph],
    feeds: dict[Role, list[Feed]],
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, records = text
    monkeypatch.delitem(table.OPERATORS, "softmax")
    rows = {role: found[0] for role, found in feeds.items()}
    layout = Bundle(root, bundle.manifest)
    filled, reasons = coreml_parity(
        records, layout, reference=reference, rows=rows, samples=3, stand_in=eager_answers(graphs)
    )
    record = filled["text_encoder"]
    assert record.parity is None
    assert PARITY_NOTE not in record.notes
    assert record.notes[-1].startswith("Parity was not measured: `softmax`")
    assert "`softmax`" in reasons["text_encoder"]
    with pytest.raises(EngineError, match="softmax"):
        coreml_parity(records, layout, reference=reference, rows=rows, samples=3)

    told: list[GraphOutcome] = []
    log = OutcomeLog([_VARIANT], ["text_encoder"], [_VARIANT], told.append)
    log.unmeasured(_VARIANT, "text_encoder", reasons["text_encoder"])
    log.passed(record)
    assert told[-1].status == "not_run"
    assert "softmax" in told[-1].reason


def test_nothing_is_run_where_no_samples_are_asked_for(
    text: tuple[Path, dict[Role, GraphRecord]], bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    filled, reasons = coreml_parity(
        text[1], Bundle(tmp_path, bundle.manifest), reference=reference, rows={}, samples=0
    )  # there is no package in this folder
    assert filled == text[1]
    assert reasons == {"text_encoder": "the recipe's coreml_samples is 0"}


def test_a_part_is_evenly_spaced_and_keeps_answers_beside_their_questions(reference: Reference) -> None:
    part = part_of(reference, 3)
    rows = [0, 2, 5]  # of 8
    assert np.array_equal(part.pixels, reference.pixels[rows])
    assert np.array_equal(part.embeddings, reference.embeddings[rows])
    assert np.array_equal(part.caches, reference.caches[rows])
    assert part.captions == [reference.captions[row] for row in rows]
    assert np.array_equal(part.text_embeddings, reference.text_embeddings[rows])
    whole = part_of(reference, 100)
    assert whole.captions == reference.captions
    assert np.array_equal(whole.ids, reference.ids)
