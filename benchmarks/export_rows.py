"""The export table as Markdown, from cells and timings."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from benchmarks.export_cells import Cell, Closeness
from benchmarks.export_models import BACKBONES, MODELS
from pocketlens.core.bundle import ROLES, Role
from pocketlens.export.recipe import VARIANTS, split_variant

__all__ = ["Timing", "table"]

_HEAD: Final = ("graph", "variant", "result", "MB", "delegated", "ms", "× fp32", "cosine min", "mean", "centred")
_REASON: Final = 240


class Timing(msgspec.Struct, frozen=True, kw_only=True, tag="timing"):
    """Latency of one graph at batch 1, measured in turns with the others of its model and role."""

    model: str
    role: Role
    variant: str
    p50_ms: float
    p90_ms: float
    runs: int


def table(lines: Iterable[Cell | Timing]) -> str:
    """Return a table of everything that was measured; of a cell that was measured twice, the last counts."""
    cells: dict[tuple[str, str, str], Cell] = {}
    times: dict[tuple[str, str, str], Timing] = {}
    for line in lines:
        key = (line.model, line.role, line.variant)
        if isinstance(line, Cell):
            cells[key] = line
        else:
            times[key] = line
    keys = [(model, role, variant) for model in MODELS for role in ROLES for variant in VARIANTS]
    rows = [_cells(cells[key], times) for key in keys if key in cells]
    return "\n".join(_row(row) for row in (_HEAD, ["---"] * len(_HEAD), *rows))


def _cells(cell: Cell, times: dict[tuple[str, str, str], Timing]) -> tuple[str, ...]:
    timing = times.get((cell.model, cell.role, cell.variant))
    twin = times.get((cell.model, cell.role, f"{split_variant(cell.variant)[0]}-fp32"))
    close = _headline(cell)
    return (
        cell.model if cell.model in BACKBONES else f"{cell.model} {cell.role}",
        f"`{cell.variant}`",
        _result(cell),
        "–" if cell.bytes is None else f"{cell.bytes / 1e6:.2f}",
        "–" if cell.operators is None else f"{cell.delegated} of {cell.operators} in {cell.parts}",
        "–" if timing is None else f"{timing.p50_ms:.2f}",
        "–" if timing is None or twin is None else f"{twin.p50_ms / timing.p50_ms:.2f}",
        *(["–"] * 3 if close is None else (f"{v:.5f}" for v in (close.minimum, close.mean, close.centred))),
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
