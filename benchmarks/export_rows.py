"""The export table as Markdown, from cells and timings: as a grid of variants and models, or a row for each graph."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from benchmarks.export_cells import Cell, Closeness
from benchmarks.export_models import BACKBONES, MODELS
from pocketlens.core.bundle import ROLES, Role
from pocketlens.export.recipe import VARIANTS, split_variant

__all__ = ["Timing", "grid", "rows"]

_HEAD: Final = ("graph", "variant", "result", "MB", "delegated", "ms", "× fp32", "cosine min", "mean", "centred")
_REASON: Final = 240
_NONE: Final = "–"

Key = tuple[str, Role, str]
"""Model, role, variant."""


class Timing(msgspec.Struct, frozen=True, kw_only=True, tag="timing"):
    """Latency of one graph at batch 1, measured in turns with the others of its model and role."""

    model: str
    role: Role
    variant: str
    p50_ms: float
    p90_ms: float
    runs: int


class _Measured:
    """Cells and timings by key; of what was measured twice, the last counts."""

    def __init__(self, lines: Iterable[Cell | Timing]) -> None:
        self.cells: dict[Key, Cell] = {}
        self.times: dict[Key, Timing] = {}
        for line in lines:
            key = (line.model, line.role, line.variant)
            if isinstance(line, Cell):
                self.cells[key] = line
            else:
                self.times[key] = line


def grid(lines: Iterable[Cell | Timing]) -> str:
    """Return two tables, of the towers and of the graphs of `nano`: a row for each variant.

    A cell is `MB, ms, cosine min / centred`; what is missing in it was not measured. The reasons of failures follow.
    """
    measured = _Measured(lines)
    reasons: list[str] = []
    towers: list[tuple[str, Role]] = [(model, "image_encoder") for model in BACKBONES]
    nano: list[tuple[str, Role]] = [("nano", role) for role in ROLES]
    tables = [_grid(measured, columns, names, reasons) for columns, names in ((towers, 0), (nano, 1))]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join([*tables, *(["\n".join(notes)] if notes else [])])


def _grid(measured: _Measured, columns: Sequence[tuple[str, Role]], names: int, reasons: list[str]) -> str:
    rows = [("variant", *(column[names] for column in columns)), ["---"] * (1 + len(columns))]
    for variant in VARIANTS:
        keys: list[Key] = [(model, role, variant) for model, role in columns]
        if any(key in measured.cells for key in keys):
            rows.append((f"`{variant}`", *(_brief(measured, key, reasons) for key in keys)))
    return "\n".join(_row(row) for row in rows)


def _brief(measured: _Measured, key: Key, reasons: list[str]) -> str:
    cell, timing = measured.cells.get(key), measured.times.get(key)
    if cell is None:
        return "not tried"
    if cell.status == "failed":
        if cell.reason not in reasons:
            reasons.append(cell.reason)
        return f"fails ({reasons.index(cell.reason) + 1})"
    close = _headline(cell)
    size = _NONE if cell.bytes is None else f"{cell.bytes / 1e6:.2f}"
    time = _NONE if timing is None else f"{timing.p50_ms:.2f}"
    cosine = _NONE if close is None else f"{close.minimum:.4f} / {close.centred:.4f}"
    return f"{size}, {time}, {cosine}"


def rows(lines: Iterable[Cell | Timing]) -> str:
    """Return a table with a row for each graph that was measured, and everything that is known of it."""
    measured = _Measured(lines)
    keys = [(model, role, variant) for model in MODELS for role in ROLES for variant in VARIANTS]
    found = [_cells(measured, key) for key in keys if key in measured.cells]
    return "\n".join(_row(row) for row in (_HEAD, ["---"] * len(_HEAD), *found))


def _cells(measured: _Measured, key: Key) -> tuple[str, ...]:
    model, role, variant = key
    cell, timing = measured.cells[key], measured.times.get(key)
    twin = measured.times.get((model, role, f"{split_variant(variant)[0]}-fp32"))
    close = _headline(cell)
    return (
        model if model in BACKBONES else f"{model} {role}",
        f"`{variant}`",
        _result(cell),
        _NONE if cell.bytes is None else f"{cell.bytes / 1e6:.2f}",
        _NONE if cell.operators is None else f"{cell.delegated} of {cell.operators} in {cell.parts}",
        _NONE if timing is None else f"{timing.p50_ms:.2f}",
        _NONE if timing is None or twin is None else f"{twin.p50_ms / timing.p50_ms:.2f}",
        *([_NONE] * 3 if close is None else (f"{v:.5f}" for v in (close.minimum, close.mean, close.centred))),
    )


def _headline(cell: Cell) -> Closeness | None:
    """Return the closeness of the first output, which is the one that the graph is for."""
    return next(iter(cell.outputs.values()), None)


def _result(cell: Cell) -> str:
    if cell.status == "failed":
        return "fails: " + cell.reason.replace("|", "/").replace("\n", " ")[:_REASON]
    return cell.status


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
