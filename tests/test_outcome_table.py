"""What a piped export says while it works."""

import io

import pytest
from rich.console import Console

from pocketlens import console, outcome_table
from pocketlens.export.outcomes import GraphOutcome


def test_elsewhere_than_on_a_terminal_each_change_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    plain = Console(file=written, width=200)
    monkeypatch.setattr(outcome_table, "STDERR", plain)
    monkeypatch.setattr(console, "STDERR", plain)
    name = {"variant": "onnx-int8", "role": "text_encoder"}
    with outcome_table.outcome_table() as show:
        show(GraphOutcome(**name, status="waiting"))
        show(GraphOutcome(**name, status="lowered"))
        show(GraphOutcome(**name, status="lowered", bytes=2_000_000))  # no news yet
        show(GraphOutcome(**name, status="passed", bytes=2_000_000))
        show(GraphOutcome(**name, status="passed", bytes=2_000_000, quality={"cider": 250.0}))
    assert written.getvalue().splitlines() == [
        "onnx-int8 text_encoder  lowered",
        "onnx-int8 text_encoder  passed  2.00",
        "onnx-int8 text_encoder  passed  2.00  cider 250.000",
    ]
