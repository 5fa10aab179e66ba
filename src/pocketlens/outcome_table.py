"""The live table of an export on stderr: one row a graph, redrawn as figures arrive."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.live import Live
from rich.table import Table
from rich.text import Text

from pocketlens.console import STDERR, say

if TYPE_CHECKING:
    from pocketlens.export.outcomes import GraphOutcome

__all__ = ["outcome_cells", "outcome_table"]

_COLUMNS: Final = ("graph", "status", "MB", "delegated", "parity", "quality", "p50 ms", "x fp32", "why")
_SAID: Final = ("lowered", "passed", "not_run", "failed")


def outcome_cells(outcome: "GraphOutcome") -> tuple[str, ...]:
    """Return the row of one graph; what is not known is empty."""
    parity = outcome.parity
    shown = ""
    if parity is not None:
        figure = f"{parity.minimum:.4f}/{parity.mean:.4f}"
        shown = f"cos {figure}" if parity.metric == "cosine" else f"{parity.mean:.0%} of captions"
    share = outcome.delegation
    return (
        f"{outcome.variant} {outcome.role}",
        outcome.status if outcome.shipped else f"{outcome.status} (twin)",
        "" if outcome.bytes is None else f"{outcome.bytes / 1e6:.2f}",
        "" if share is None else f"{share.share:.0%} in {share.parts}",
        shown,
        " ".join(f"{metric} {value:.3f}" for metric, value in outcome.quality.items()),
        "" if outcome.latency is None else f"{outcome.latency.p50_ms:.2f}",
        "" if outcome.speedup_vs_fp32 is None else f"{outcome.speedup_vs_fp32:.2f}",
        outcome.reason,
    )


@contextmanager
def outcome_table() -> Iterator[Callable[["GraphOutcome"], None]]:
    """Give a callable that shows each new outcome: a live table on a terminal, a line a change elsewhere."""
    latest: dict[tuple[str, str], GraphOutcome] = {}
    if not STDERR.is_terminal:

        def line(outcome: "GraphOutcome") -> None:
            key = (outcome.variant, outcome.role)
            before = latest.get(key)
            new = before is None or (before.status, before.quality) != (outcome.status, outcome.quality)
            if new and outcome.status in _SAID:
                say("  ".join(cell for cell in outcome_cells(outcome) if cell))
            latest[key] = outcome

        yield line
        return

    def drawn() -> Table:
        table = Table(*_COLUMNS)
        for outcome in latest.values():
            table.add_row(*map(Text, outcome_cells(outcome)))  # text, for a reason may hold brackets
        return table

    with Live(console=STDERR, refresh_per_second=4, vertical_overflow="visible") as live:

        def draw(outcome: "GraphOutcome") -> None:
            latest[outcome.variant, outcome.role] = outcome
            live.update(drawn())

        yield draw
