"""The parts of the report that use the finished bundle as an app would: captions, fallback, search."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pocketlens.cloud_fallback import CloudCaptioner, Consent, FallbackPolicy, PolicyFallback
from pocketlens.core.captions import Caption, CaptionFallback
from pocketlens.core.events import EventSink
from pocketlens.demo.local_cloud import local_cloud
from pocketlens.demo.report_content import (
    EventCount,
    FallbackFacts,
    PictureCard,
    SearchCard,
    SearchHit,
    TelemetryFacts,
)
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.scenes import hallucinated, mentioned_kinds
from pocketlens.runtime import Lens, Refusal, Store, index_folder, load
from pocketlens.telemetry import preview

__all__ = ["THRESHOLD", "captioned", "searched", "telemetry_facts"]

THRESHOLD = 0.5
"""Below this confidence the demo asks its own cloud, a process on the same machine."""

QUERIES = (
    "two red balls on the grass",
    "a blue boat on the lake at sunset",
    "a house in the snow at night",
    "three mushrooms on the beach",
)


class _Recorder:
    """Passes each question on and keeps both captions, so that the report can show them side by side."""

    def __init__(self, fallback: CaptionFallback) -> None:
        self._fallback = fallback
        self.pairs: list[tuple[Caption, Caption]] = []

    def __call__(self, picture: bytes, device_caption: Caption) -> Caption:
        answer = self._fallback(picture, device_caption)
        self.pairs.append((device_caption, answer))
        return answer


def captioned(
    bundle: Path, samples: Sequence[Sample], folder: Path, sink: EventSink
) -> tuple[tuple[PictureCard, ...], FallbackFacts]:
    """Caption `samples` with the bundle, asking a local service below `THRESHOLD`, with consent.

    The pictures are the demo's own drawings and the service is a process on this machine: nothing
    leaves it.
    """
    with local_cloud() as url, CloudCaptioner(url) as client:
        consent = Consent.grant("captions", at=datetime.now(UTC))
        policy = FallbackPolicy(threshold=THRESHOLD, consent=consent)
        recorder = _Recorder(PolicyFallback(policy, client, sink))
        lens = load(bundle, sink=sink, fallback=recorder)
        for result in lens.captions([folder / sample.image for sample in samples]):
            if isinstance(result, Refusal):
                raise result.error
    cards = tuple(
        _card(sample, folder, device, answer) for sample, (device, answer) in zip(samples, recorder.pairs, strict=True)
    )
    sent = sum(policy.decide(device).send for device, _ in recorder.pairs)
    sources = Counter(answer.source for _, answer in recorder.pairs)
    facts = FallbackFacts(
        threshold=THRESHOLD,
        consent=True,
        captions=len(cards),
        sent=sent,
        answered=sources["cloud"],
        abstained=sources["abstained"],
        destination="a caption service in another process on this same machine",
    )
    return cards, facts


def searched(
    bundle: Path, samples: Sequence[Sample], folder: Path, store: Path, sink: EventSink
) -> tuple[SearchCard, ...]:
    """Index the test pictures and return what each of `QUERIES` finds."""
    lens = load(bundle, sink=sink)
    truths = {str((folder / sample.image).resolve()): sample.captions[0] for sample in samples}
    with Store.open(store, model_version=lens.model_version, dim=lens.dim) as opened:
        index_folder(lens, opened, (folder / samples[0].image).parent.resolve())
        return tuple(_search(lens, opened, query, truths) for query in QUERIES)


def telemetry_facts(folder: Path) -> TelemetryFacts:
    """Return what the event log in `folder` holds."""
    stored = preview(folder)
    counts = Counter(msgspec.to_builtins(event.event)["event"] for event in stored.events)
    return TelemetryFacts(
        counts=tuple(EventCount(name, count) for name, count in sorted(counts.items())),
        stored_bytes=stored.stored_bytes,
        uploaded=0,
        examples=tuple(stored.lines())[-3:],
    )


def _card(sample: Sample, folder: Path, device: Caption, answer: Caption) -> PictureCard:
    wrong = set(hallucinated(device.text, frozenset(sample.kinds))) | set(
        hallucinated(answer.text, frozenset(sample.kinds))
    )
    return PictureCard(
        image=folder / sample.image,
        caption=device.text,
        confidence=device.confidence,
        source=answer.source,
        truth=sample.captions[0],
        correct=mentioned_kinds(answer.text) == frozenset(sample.kinds),
        wrong_words=tuple(sorted(wrong)),
        cloud_caption=answer.text if answer.source == "cloud" else None,
    )


def _search(lens: Lens, store: Store, query: str, truths: dict[str, str]) -> SearchCard:
    hits = store.search(lens.embed_text(query), k=4)
    return SearchCard(query, tuple(SearchHit(Path(hit.path), hit.score, truths[hit.path]) for hit in hits))
