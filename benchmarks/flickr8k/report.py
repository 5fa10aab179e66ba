"""The figures of an output folder as one Markdown page."""

from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["write_report"]

_RECALL: Final = ("r1_i2t", "r5_i2t", "r10_i2t", "r1_t2i", "r5_t2i", "r10_t2i")
_CAPTION: Final = ("cider", "bleu1", "bleu4", "hallucination", "hallucination_captions", "caption_length")
_PERCENT: Final = frozenset((*_RECALL, "hallucination", "hallucination_captions"))
_PUBLISHED: Final = (
    "| Karpathy & Fei-Fei 2015 | 16.5 | – | 54.2 | 11.8 | – | 44.7 |",
    "| NIC / Show, Attend and Tell | – | 63 | 21.3 | – | – | – |",
)


def write_report(out: Path) -> str:
    """Write `report.md` from whatever stages have finished and return it."""
    found: dict[str, dict[str, Any]] = {
        path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(out.glob("*.json"))
    }
    lines: list[str] = []
    for stage, split in (("teacher", "dev"), ("student", "dev"), ("export", "test")):
        if split in found.get(stage, {}):
            rows = found[stage][split]
            lines += _table(f"Retrieval, {split}", rows, _RECALL, _PUBLISHED[0])
            lines += _table(f"Captions, {split}", rows, _CAPTION, _PUBLISHED[1])
    if "export" in found:
        lines += ["", *(f"- {name}: {size / 1e6:.2f} MB" for name, size in found["export"]["bytes"].items())]
        lines += _kept(found["export"]["test"])
    if "ablations" in found:
        lines += _table("Ablations, dev", {k: v["dev"] for k, v in found["ablations"].items()}, _RECALL)
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _table(title: str, rows: dict[str, Any], metrics: tuple[str, ...], *published: str) -> list[str]:
    shown = {name: row for name, row in rows.items() if metrics[0] in row}
    if not shown:
        return []
    lines = ["", f"## {title}", "", f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for name, row in shown.items():
        lines.append(f"| {name} | {' | '.join(_cell(row[metric], metric) for metric in metrics)} |")
    return [*lines, *published]


def _cell(figure: dict[str, float], metric: str) -> str:
    factor = 100 if metric in _PERCENT else 1
    value, low, high = (factor * figure[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def _kept(test: dict[str, Any]) -> list[str]:
    teachers = {name: row for name, row in test.items() if name.startswith("teacher") and "r1_i2t" in row}
    lines = ["", "Share of the teacher's R@1 (picture to text, text to picture):", ""]
    for name, row in test.items():
        if name in teachers or "r1_i2t" not in row:
            continue
        for teacher, theirs in teachers.items():
            shares = [row[metric]["value"] / theirs[metric]["value"] for metric in ("r1_i2t", "r1_t2i")]
            lines.append(f"- {name} of {teacher}: {shares[0]:.1%}, {shares[1]:.1%}")
    return lines
