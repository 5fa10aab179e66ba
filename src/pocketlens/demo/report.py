"""Writes the demo's report: one HTML file that holds its pictures and asks no network for anything.

The page shows what it is given and makes up nothing: a figure that is `None` (or NaN) becomes a
dash that says why. Rates, confidences and ratios are fractions here and percentages on the page.
"""

import base64
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from pocketlens.core.decode import decode_image
from pocketlens.core.errors import DataError, storage_errors
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.demo.report_content import (
    ComparisonRow,
    EventCount,
    FallbackFacts,
    Figure,
    LossPoint,
    ParityFigure,
    PictureCard,
    ReportContent,
    SearchCard,
    SearchHit,
    Stage,
    TargetCheck,
    TelemetryFacts,
    VariantRow,
)
from pocketlens.distill.scenes import SYNONYMS

__all__ = [
    "ComparisonRow",
    "EventCount",
    "FallbackFacts",
    "Figure",
    "LossPoint",
    "ParityFigure",
    "PictureCard",
    "ReportContent",
    "SearchCard",
    "SearchHit",
    "Stage",
    "TargetCheck",
    "TelemetryFacts",
    "VariantRow",
    "write_report",
]

_PICTURE_PX: Final = 256
_SPEC: Final = PreprocessSpec(height_px=_PICTURE_PX, width_px=_PICTURE_PX)  # for its limits only
_NBSP: Final = "\N{NO-BREAK SPACE}"


def write_report(path: Path, content: ReportContent) -> None:
    """Write `content` to `path` as one self-contained HTML file, in place of an older one.

    Raises:
        PictureError: a picture of `content` is missing or broken.
        StorageFull: the disk is full; an older report stays as it was.
        DataError: `path` cannot be written.
    """
    page = _template().render(
        picture=cache(_data_uri),
        content=content,
        total_s=math.fsum(stage.seconds for stage in content.seconds),
        longest_s=max((stage.seconds for stage in content.seconds), default=0.0),
        star=_star(content.cards),
        curve=_curve(content.loss),
        plots=[_plot(row) for row in content.comparison],
    )
    partial = path.with_name(path.name + ".part")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(page.encode("utf-8", "replace"))  # file names may hold half characters
            os.replace(partial, path)
    except OSError as error:
        raise DataError(
            str(path),
            expected="a place where the report can be written",
            found=error.strerror or str(error),
            remedy="Choose another output folder, or make this one writable.",
        ) from error
    finally:
        with suppress(OSError):  # there is none after success, and what made it fail was said already
            partial.unlink()


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(_FILTERS)
    source = resources.files("pocketlens.demo").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _data_uri(image: Path) -> str:
    """Return a copy of the picture, at most 256 px wide and high and free of metadata, as a data URI."""
    picture = decode_image(image, _SPEC)
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=88, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _star(cards: Sequence[PictureCard]) -> PictureCard | None:
    """Return the device's surest correct caption, for the top of the page."""
    right = [card for card in cards if card.correct and card.source == "device"]
    return max(right, key=lambda card: card.confidence, default=None)


def _segments(text: str, wrong: Sequence[str]) -> list[tuple[str, bool]]:
    """Return `text` in pieces, each with whether it is a form of one of the words in `wrong`."""
    forms = {form.lower() for word in wrong for form in (word, *SYNONYMS.get(word, ()))} - {""}
    if not forms:
        return [(text, False)]
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    pieces = pattern.split(text)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


class _Tick(NamedTuple):
    at: float  # per cent of the axis, from the left or the top
    label: str


class _Curve(NamedTuple):
    line: str  # the points of an SVG polyline in a box of 100 x 100
    x_ticks: list[_Tick]
    y_ticks: list[_Tick]
    first: LossPoint
    last: LossPoint
    end: tuple[float, float]


def _curve(loss: Iterable[LossPoint]) -> _Curve | None:
    """Return the geometry of the loss curve, or `None` for fewer than two finite points."""
    points = sorted((p for p in loss if math.isfinite(p.loss)), key=lambda p: p.step)
    if len(points) < 2 or points[0].step == points[-1].step:
        return None
    losses = [p.loss for p in points]
    low = min(0.0, *losses)
    high = max(losses) + 0.03 * (max(losses) - low or 1.0)
    start, width = points[0].step, points[-1].step - points[0].step

    def across(step: float) -> float:
        return round(100 * (step - start) / width, 3)

    def down(value: float) -> float:
        return round(100 * (high - value) / (high - low), 3)

    return _Curve(
        line=" ".join(f"{across(p.step)},{down(p.loss)}" for p in points),
        x_ticks=[_Tick(across(x), f"{x:,.0f}") for x in _round_numbers(start, start + width)],
        y_ticks=[_Tick(down(y), f"{y:g}") for y in _round_numbers(low, high)],
        first=points[0],
        last=points[-1],
        end=(across(points[-1].step), down(points[-1].loss)),
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """Return three to six round numbers at even distances between `low` and `high`."""
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(m for m in (1, 2, 2.5, 5, 10) if raw <= m * size * (1 + 1e-9))
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Mark(NamedTuple):
    who: str
    at: float  # per cent of the plot's width, as are the ends of the whisker
    low: float | None
    high: float | None


def _plot(row: ComparisonRow) -> list[_Mark]:
    """Return where a row's values lie between 0 and the largest of them."""
    given = {"teacher": row.teacher, "student": row.student, "int8": row.int8}
    figures = {who: figure for who, figure in given.items() if figure and math.isfinite(figure.value)}
    ends = [end for f in figures.values() for end in (f.value, f.low, f.high) if end is not None]
    low, high = min([0.0, *ends]), max(ends, default=1.0)

    def across(value: float) -> float:
        return round(3 + 94 * (value - low) / ((high - low) or 1.0), 2)  # keeps marks off the edges

    return [
        _Mark(
            who,
            across(f.value),
            None if f.low is None else across(f.low),
            None if f.high is None else across(f.high),
        )
        for who, f in figures.items()
    ]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}{_NBSP}%"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:,.{digits}f}"


def _measure(value: float, scale: str) -> str:
    return _percent(value) if scale == "percent" else _number(value)


def _size(count: int) -> str:
    """Return a size in decimal units: the goals are in MB of 10^6 bytes."""
    if count < 1000:
        return f"{count}{_NBSP}B"
    unit, name = (1e3, "kB") if count < 1e6 else (1e6, "MB")
    return f"{count / unit:.2f}{_NBSP}{name}"


def _milliseconds(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1}f}{_NBSP}ms"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_NBSP}h {minutes}{_NBSP}min" if hours else f"{minutes}{_NBSP}min {rest}{_NBSP}s"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}{_NBSP}M" if count >= 1e6 else f"{count:,}"


def _parity(value: float, metric: str) -> str:
    # Rounded down: 0.999996 must not look like a perfect 1.
    if metric == "cosine":
        return f"{math.floor(value * 1e5 + 1e-6) / 1e5:.5f}"
    return f"{math.floor(value * 1e3 + 1e-6) / 10:.1f}{_NBSP}%"


_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "duration": _duration,
    "finite": _finite,
    "measure": _measure,
    "millions": _millions,
    "milliseconds": _milliseconds,
    "number": _number,
    "parity": _parity,
    "percent": _percent,
    "segments": _segments,
    "size": _size,
}
