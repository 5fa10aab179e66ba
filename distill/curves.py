"""The curves of a run as a picture."""

import csv
from pathlib import Path

import numpy as np

from pocketlens.core.errors import storage_errors

__all__ = ["draw_curves"]

_POINTS = 400


def draw_curves(run: Path) -> Path | None:
    """Draw `metrics.csv` and `validation.csv` of the folder `run` to `curves.png`; nothing without metrics.

    Raises:
        StorageFull: no space left.
    """
    terms = _columns(run / "metrics.csv")
    if not terms:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = terms.pop("step")
    width = max(1, len(steps) // _POINTS)
    whole = len(steps) // width * width
    for name, values in terms.items():
        means = values[:whole].reshape(-1, width).mean(axis=1)
        axes.plot(steps[:whole:width], means, label=name, linewidth=1.6 if name == "loss" else 1.0)
    looks = _columns(run / "validation.csv")
    if looks:
        axes.plot(looks["step"], looks["loss"], "k.--", label="validation loss")
    axes.set(xlabel="step", ylabel="weighted loss", yscale="log", title=run.resolve().parent.name)
    axes.legend(fontsize="small")
    path = run / "curves.png"
    with storage_errors(path):
        figure.savefig(path, dpi=110)
    return path


def _columns(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = rows[0] if rows else {}
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
