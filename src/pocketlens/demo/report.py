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
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from jinja2 import Environment, StrictUndefined
from PIL import Image

from pocketlens.core.captions import CaptionSource
from pocketlens.core.decode import decode_image
from pocketlens.core.errors import DataError, storage_errors
from pocketlens.core.preprocess_spec import PreprocessSpec
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


class Stage(msgspec.Struct, frozen=True):
    """One stage of the run and its wall time in seconds."""

    name: str
    seconds: float


class LossPoint(msgspec.Struct, frozen=True):
    """The training loss, all terms with their weights, at an optimizer step."""

    step: int
    loss: float


class PictureCard(msgspec.Struct, frozen=True, kw_only=True):
    """One test picture and what was said about it.

    Attributes:
        image: the picture's file; a smaller copy goes into the page.
        caption: what the device said by itself; for an abstention what it withheld, or empty.
        confidence: the device's, in [0, 1].
        source: whose caption the caller got.
        truth: a reference caption; also the picture's text alternative.
        correct: whether the caption that the caller got is free of errors, as the demo judges it.
        wrong_words: kinds that a caption names and the picture lacks; every word form of a kind of
            the built-in scenes is marked in the captions.
        cloud_caption: what the cloud side answered, where it was asked.
    """

    image: Path
    caption: str
    confidence: float
    source: CaptionSource
    truth: str
    correct: bool
    wrong_words: tuple[str, ...] = ()
    cloud_caption: str | None = None


class SearchHit(msgspec.Struct, frozen=True):
    """One picture found. `score`: cosine of query and picture, in [-1, 1]; `caption`: its reference caption."""

    image: Path
    score: float
    caption: str


class SearchCard(msgspec.Struct, frozen=True):
    """One query and the pictures found, best first."""

    query: str
    hits: tuple[SearchHit, ...]


class Figure(msgspec.Struct, frozen=True):
    """A measured value and the ends of its interval, `None` where none was computed."""

    value: float
    low: float | None = None
    high: float | None = None


class ParityFigure(msgspec.Struct, frozen=True):
    """Agreement with the eager student over the test pictures: `pocketlens.core.bundle.Parity`, in brief."""

    metric: Literal["cosine", "token_agreement"]
    minimum: float
    mean: float


class VariantRow(msgspec.Struct, frozen=True, kw_only=True):
    """One precision on one target; figures that were not measured are `None`.

    Attributes:
        target: e.g. `onnx`; `precision`: e.g. `int8`; `engine`: what ran it, or would.
        bytes: size of all its graphs together.
        image_p50_ms: image encoder at batch 1, median; `image_p90_ms`: its 90th percentile.
        decode_p50_ms: one caption decode step at batch 1, median.
        parity: of the image encoder, or of the captions.
        r1_i2t: recall@1 image → text, in [0, 1]; `r1_t2i`: text → image; `cider`: raw scale.
        speedup: of the image encoder over fp32 on the same engine; 1 is equal.
        unmeasured: why figures are missing, in a few words: "needs a Mac".
        notes: whole sentences, e.g. the manifest's.
    """

    target: str
    precision: str
    engine: str
    bytes: int | None = None
    image_p50_ms: float | None = None
    image_p90_ms: float | None = None
    decode_p50_ms: float | None = None
    parity: ParityFigure | None = None
    r1_i2t: float | None = None
    r1_t2i: float | None = None
    cider: float | None = None
    speedup: float | None = None
    unmeasured: str = "not measured in this run"
    notes: tuple[str, ...] = ()


class ComparisonRow(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of teacher and student.

    Attributes:
        metric: its name as shown.
        scale: `percent` for fractions in [0, 1], `score` for numbers shown as they are.
        higher_is_better: says how to read the row.
        teacher: of the teacher; `student`: eager fp32; `int8`: the exported int8 graphs.
        ratio: student over teacher; `None` where the teacher's value is 0.
        headline: whether the ratio also stands at the top of the page.
    """

    metric: str
    scale: Literal["percent", "score"]
    higher_is_better: bool
    teacher: Figure
    student: Figure
    int8: Figure | None = None
    ratio: float | None = None
    headline: bool = False


class TargetCheck(msgspec.Struct, frozen=True):
    """One goal in words, with what was measured and whether that meets it."""

    name: str
    wanted: str
    got: str
    passed: bool


class FallbackFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud fallback did in this run.

    Attributes:
        threshold: captions below this confidence may be sent, in [0, 1]; 0 sends none.
        consent: whether sending was allowed in this run.
        captions: device captions made while the policy was in force.
        sent: pictures that were sent; `answered`: of these, how many came back with a caption.
        abstained: captions that were withheld.
        destination: where pictures went, in words: "a server process on this same machine".
        left_machine: pictures that went over a network to another machine.
    """

    threshold: float
    consent: bool
    captions: int
    sent: int
    answered: int
    abstained: int
    destination: str
    left_machine: int = 0


class EventCount(msgspec.Struct, frozen=True):
    """How often an event of `telemetry/events.yaml` was written to the local log."""

    name: str
    count: int


class TelemetryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the local event log holds after the run.

    Attributes:
        counts: events per name.
        stored_bytes: size of the log.
        uploaded: events that were uploaded.
        examples: lines of the log, verbatim.
    """

    counts: tuple[EventCount, ...]
    stored_bytes: int
    uploaded: int
    examples: tuple[str, ...] = ()


class ReportContent(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows.

    Attributes:
        title: of the page.
        seed: of the run.
        created: the date, as it shall read.
        machine: processor and thread count, in words.
        seconds: the stages in order; their sum is shown as the run's time.
        test_pictures: size of the test set.
        student_params: parameters of the student.
        bundle_bytes: size of the int8 ONNX bundle.
        cards: pictures with captions.
        searches: queries with hits.
        variants: targets and precisions.
        comparison: teacher and student.
        targets: goals, met and missed.
        fallback: what the cloud fallback did.
        telemetry: what the local log holds.
        loss: the training loss in the order of the steps; empty draws no curve.
        cards_note: how the pictures were chosen.
        interval_note: what the intervals are: "95 % bootstrap over the test pictures".
    """

    title: str
    seed: int
    created: str
    machine: str
    seconds: tuple[Stage, ...]
    test_pictures: int
    student_params: int
    bundle_bytes: int
    cards: tuple[PictureCard, ...]
    searches: tuple[SearchCard, ...]
    variants: tuple[VariantRow, ...]
    comparison: tuple[ComparisonRow, ...]
    targets: tuple[TargetCheck, ...]
    fallback: FallbackFacts
    telemetry: TelemetryFacts
    loss: tuple[LossPoint, ...] = ()
    cards_note: str = ""
    interval_note: str = ""


def write_report(path: Path, content: ReportContent) -> None:
    """Write `content` to `path` as one self-contained HTML file, in place of an older one.

    Raises:
        PictureError: a picture of `content` is missing or broken.
        StorageFull: the disk is full; an older report stays as it was.
        DataError: `path` cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(_FILTERS)
    environment.globals.update(picture=cache(_data_uri))
    template = resources.files("pocketlens.demo").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
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
            partial.write_text(page, encoding="utf-8")
            os.replace(partial, path)
    except OSError as error:
        raise DataError(
            str(path),
            expected="a place where the report can be written",
            found=error.strerror or str(error),
            remedy="Choose another output folder, or make this one writable.",
        ) from error


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
    x_values = _round_steps(points[0].step, points[-1].step)
    y_values = _round_steps(min(0.0, *(p.loss for p in points)), max(p.loss for p in points))
    low, high = y_values[0], max(y_values[-1], *(p.loss for p in points))
    start, width = points[0].step, points[-1].step - points[0].step

    def across(step: float) -> float:
        return round(100 * (step - start) / width, 3)

    def down(value: float) -> float:
        return round(100 * (high - value) / ((high - low) or 1.0), 3)

    return _Curve(
        line=" ".join(f"{across(p.step)},{down(p.loss)}" for p in points),
        x_ticks=[_Tick(across(x), f"{x:,.0f}") for x in x_values if start <= x <= start + width],
        y_ticks=[_Tick(down(y), f"{y:g}") for y in y_values],
        first=points[0],
        last=points[-1],
        end=(across(points[-1].step), down(points[-1].loss)),
    )


def _round_steps(low: float, high: float) -> list[float]:
    """Return about five round numbers at even distances, from at most `low` to about `high`."""
    raw = (high - low) / 4 or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(m for m in (1, 2, 2.5, 5, 10) if raw <= m * size * (1 + 1e-9))
    first = math.floor(low / step)
    return [round(i * step, 10) for i in range(first, math.ceil(high / step - 1e-9) + 1)]


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
