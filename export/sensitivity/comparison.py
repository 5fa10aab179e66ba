"""What can be had before any layer is kept in float: ways of quantizing, side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pocketlens.core.bundle import Parity
from pocketlens.export.sensitivity.answers import run_graph, snr_db
from pocketlens.export.sensitivity.quantizer import StaticQuantizer
from pocketlens.export.sensitivity.search import Gate, compare
from pocketlens.export.sensitivity.settings import Settings

if TYPE_CHECKING:
    from pocketlens.export.reference import Feed

__all__ = ["Trial", "compare_settings", "trials_table"]


@dataclass(frozen=True)
class Trial:
    """One way of quantizing all layers.

    Attributes:
        label: the way.
        parity: cosine of the worst output to that of the float graph, on held-out inputs.
        rounding: the same with the int8 graph computed in float and rounded. Where it is much better
            than `parity`, this machine's integer kernels are what fails (16-bit sums that saturate on
            x86 without VNNI), and another processor may do better.
        snr_db: of the worst output, likewise.
        size_bytes: of the int8 graph.
    """

    label: str
    parity: Parity
    rounding: Parity
    snr_db: float
    size_bytes: int


def compare_settings(
    ways: Mapping[str, tuple[Path, Settings]],
    *,
    calibration: "Sequence[Feed]",
    held_out: "Sequence[Feed]",
    gate: Gate,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Trial, ...]:
    """Quantize all layers in each of `ways` and return what came of it, in their order.

    Args:
        ways: by label, a float graph and the settings. Graphs may differ (equalised or not, branches
            fused or not) as long as they compute the same; each is compared with its own answers.
        calibration: real inputs for the ranges.
        held_out: other real inputs.
        gate: which outputs and which statistic count; no limit is enforced.
        progress: called after each way.

    Raises:
        DataError: no calibration inputs.
        ExportError: a graph has nothing to quantize.
    """
    trials = []
    for done, (label, (path, settings)) in enumerate(ways.items(), start=1):
        quantizer = StaticQuantizer(path, calibration, settings)
        model = quantizer.quantized()
        expected, found = run_graph(quantizer.model, held_out), run_graph(model, held_out)
        names = gate.outputs or tuple(expected)
        ratio = min(snr_db(expected[name], found[name]) for name in names)
        rounding = compare(expected, run_graph(model, held_out, rounded_float=True), gate)
        trials.append(Trial(label, compare(expected, found, gate), rounding, ratio, model.ByteSize()))
        progress("ways of quantizing", done, len(ways))
    return tuple(trials)


def trials_table(trials: Sequence[Trial]) -> str:
    """Return `trials` as a Markdown table."""
    lines = ["| way | cosine mean | p1 | min | SNR dB | rounding alone | MB |", "|---|---:|---:|---:|---:|---:|---:|"]
    for trial in trials:
        parity = trial.parity
        lines.append(
            f"| {trial.label} | {parity.mean:.4f} | {parity.p1:.4f} | {parity.minimum:.4f} "
            f"| {trial.snr_db:.1f} | {trial.rounding.mean:.4f} | {trial.size_bytes / 1e6:.2f} |"
        )
    return "\n".join(lines) + "\n"
