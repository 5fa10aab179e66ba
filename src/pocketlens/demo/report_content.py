"""What the demo's report shows, as plain records. Nothing here knows about HTML.

Rates, confidences and ratios are fractions; `None` stands for a figure that was not measured.
"""

from pathlib import Path
from typing import Literal

import msgspec

from pocketlens.core.captions import CaptionSource

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
]


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
