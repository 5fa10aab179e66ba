"""The demo's report: one file, nothing made up, nothing left out, safe with any caption."""

import errno
import itertools
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from pocketlens.core.errors import DataError, PictureError, StorageFull
from pocketlens.demo.report import (
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
    write_report,
)
from pocketlens.distill.scenes import captions, mentioned_kinds, sample_scene
from pocketlens.distill.scenes.render import render

PICTURES = 24
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Collects the text and the attributes of a page, and checks that its tags balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(" ".join(self.words).split())  # no-break spaces become plain ones

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    folder = tmp_path_factory.mktemp("pictures")
    scenes = [sample_scene(seed, split="test") for seed in range(PICTURES)]
    paths = [folder / f"{i % 3}.jpg" for i in range(PICTURES)]  # three pictures do, drawing them takes a while
    for path, scene in zip(paths[:3], scenes, strict=False):
        Image.fromarray(render(scene, size_px=64)).save(path, quality=92)
    return sample(paths, [captions(scene) for scene in scenes])


def sample(paths: list[Path], said: list[tuple[str, ...]]) -> ReportContent:
    cards = [
        PictureCard(image=path, caption=c[1], confidence=0.97 - 0.011 * i, source="device", truth=c[0], correct=True)
        for i, (path, c) in enumerate(zip(paths, said, strict=True))
    ]
    # Captions of other pictures are the mistakes.
    wrong = sorted(mentioned_kinds(said[5][1]) - mentioned_kinds(said[3][0]))
    cards[3] = msgspec.structs.replace(
        cards[3], caption=said[5][1], correct=False, wrong_words=tuple(wrong), confidence=0.41
    )
    cards[7] = msgspec.structs.replace(
        cards[7], caption=said[8][2], source="cloud", cloud_caption=said[7][2], confidence=0.28
    )
    cards[10] = msgspec.structs.replace(
        cards[10], caption=said[2][2], source="abstained", correct=False, confidence=0.13
    )
    hits = tuple(SearchHit(path, 0.412 - 0.031 * i, c[0]) for i, (path, c) in enumerate(zip(paths, said, strict=True)))
    return ReportContent(
        title="A captioner for the pocket, from nothing",
        seed=7,
        created="22 November 2026",
        machine="2 cores of an x86-64 server",
        seconds=tuple(
            Stage(name, s)
            for name, s in (
                ("Draw 6,200 scenes", 41.3),
                ("Ask the teachers once", 66.2),
                ("Train the student", 271.4),
                ("Evaluate", 38.9),
                ("Export and verify", 74.6),
                ("Index, search, caption", 9.2),
            )
        ),
        test_pictures=1234,
        student_params=2_345_678,
        bundle_bytes=3_456_789,
        cards=tuple(cards),
        searches=(SearchCard("two red balls on grass", hits[:6]), SearchCard("a boat at sunset", hits[6:12])),
        variants=(
            VariantRow(
                target="onnx",
                precision="fp32",
                engine="ONNX Runtime",
                bytes=9_412_345,
                image_p50_ms=6.21,
                image_p90_ms=6.93,
                decode_p50_ms=0.84,
                parity=ParityFigure("cosine", 0.999996, 0.9999999),
                r1_i2t=0.712,
                r1_t2i=0.698,
                cider=1.416,
            ),
            VariantRow(
                target="onnx",
                precision="int8",
                engine="ONNX Runtime",
                bytes=3_456_789,
                image_p50_ms=3.37,
                image_p90_ms=3.88,
                decode_p50_ms=0.52,
                parity=ParityFigure("cosine", 0.98123, 0.99712),
                r1_i2t=0.707,
                r1_t2i=0.691,
                cider=1.403,
                speedup=1.84,
                notes=("The text encoder stays in fp32 because int8 was slower there.",),
            ),
            VariantRow(
                target="executorch",
                precision="fp32",
                engine="XNNPACK",
                bytes=9_387_001,
                image_p50_ms=12.73,
                image_p90_ms=13.31,
                decode_p50_ms=1.91,
                parity=ParityFigure("token_agreement", 0.9876, 0.9954),
                r1_i2t=0.713,
                r1_t2i=0.697,
                cider=1.417,
            ),
            VariantRow(
                target="coreml",
                precision="fp16",
                engine="CoreML",
                bytes=4_812_345,
                unmeasured="needs a Mac",
                notes=("The conversion was checked on this machine; its numbers were not.",),
            ),
        ),
        comparison=(
            ComparisonRow(
                metric="R@1 image → text",
                scale="percent",
                higher_is_better=True,
                teacher=Figure(0.801, 0.776, 0.823),
                student=Figure(0.714, 0.686, 0.741),
                int8=Figure(0.707, 0.679, 0.734),
                ratio=0.891,
                headline=True,
            ),
            ComparisonRow(
                metric="CIDEr",
                scale="score",
                higher_is_better=True,
                teacher=Figure(1.612, 1.55, 1.671),
                student=Figure(1.418, 1.353, 1.48),
                int8=Figure(1.402, 1.339, 1.463),
                ratio=0.88,
                headline=True,
            ),
            ComparisonRow(
                metric="Hallucinated objects",
                scale="percent",
                higher_is_better=False,
                teacher=Figure(0.031, 0.023, 0.042),
                student=Figure(0.045, 0.034, 0.057),
                ratio=1.4516,
            ),
        ),
        targets=(
            TargetCheck("Size of the int8 bundle", "at most 4 MB", "3.46 MB", True),
            TargetCheck("CIDEr of the teacher’s", "at least 80 %", "88.0 %", True),
            TargetCheck("Whole run", "under 10 minutes", "11 min 4 s", False),
        ),
        fallback=FallbackFacts(
            threshold=0.35,
            consent=True,
            captions=211,
            sent=17,
            answered=16,
            abstained=13,
            destination="a server process on this same machine",
        ),
        telemetry=TelemetryFacts(
            counts=(EventCount("caption_served", 212), EventCount("fallback_decided", 18)),
            stored_bytes=45_678,
            uploaded=0,
            examples=('{"day":"2026-11-22","event":"picture_refused","model_version":"nano-1","kind":"corrupt"}',),
        ),
        loss=tuple(LossPoint(i * 25, 8.123 * math.exp(-i / 22) + 1.9 + 0.12 * math.sin(i * 2.4)) for i in range(61)),
        cards_note="They are the first of the test set, not chosen.",
        interval_note="95 % bootstrap over the test pictures",
    )


@pytest.fixture(scope="module")
def html(content: ReportContent, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    write_report(path, content)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def written(tmp_path: Path, content: ReportContent) -> Page:
    write_report(tmp_path / "r.html", content)
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_the_page_holds_everything_it_needs(html: str, content: ReportContent) -> None:
    page = Page(html)
    assert not re.search(
        r"https?:|//[a-z]|@import|\burl\(|javascript:", re.sub(r"data:[^\"]*", "", html), re.IGNORECASE
    )
    assert not page.all("script")
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    sources = [image["src"] or "" for image in page.all("img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert len(sources) == PICTURES + 12 + 1  # the cards, the hits, and the one at the top
    assert len(html.encode()) < 3_000_000


def test_links_within_the_page_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [a["href"] for tag in ("a", "use") for a in page.all(tag)]
    assert references
    assert {str(reference).removeprefix("#") for reference in references} <= set(ids)
    labels = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labels <= set(ids)


def test_a_screen_reader_finds_its_way(html: str, content: ReportContent) -> None:
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert "prefers-color-scheme: dark" in html
    assert "viewport" in [meta.get("name") for meta in page.all("meta")]


def test_every_figure_is_shown(html: str, content: ReportContent) -> None:
    text = Page(html).text
    shown = [
        "A captioner for the pocket, from nothing", "22 November 2026", "2 cores of an x86-64 server", "seed 7",
        "1,234 test pictures", "2.35 M", "3.46 MB", "8 min 22 s", "41.3 s", "1 min 6 s", "4 min 31 s",
        "9.41 MB", "6.21 ms", "6.93 ms", "0.84 ms", "0.99999", "71.2 %", "69.8 %", "1.416",
        "3.37 ms", "3.88 ms", "0.52 ms", "0.98123", "0.99712", "70.7 %", "69.1 %", "1.403", "1.84 ×",
        "12.7 ms", "13.3 ms", "1.91 ms", "98.7 %", "99.5 %", "4.81 MB", "needs a Mac",
        "80.1 %", "77.6 % to 82.3 %", "68.6 % to 74.1 %", "67.9 % to 73.4 %", "89.1 %", "1.550 to 1.671",
        "1.339 to 1.463", "1.45 ×", "4.5 %", "3.4 % to 5.7 %", "95 % bootstrap over the test pictures",
        "at most 4 MB", "11 min 4 s", "2 of 3 met", "35 %", "211", "17", "16", "13", "212", "18", "45.68 kB",
        "10.023 at step 0", f"{content.loss[-1].loss:.3f} at step 1,500", "not chosen", "picture_refused",
        "The text encoder stays in fp32 because int8 was slower there.", "two red balls on grass", "0.412", "0.257",
    ]  # fmt: skip
    assert [words for words in shown if words not in text] == []
    for card in content.cards:
        assert card.truth in text
        assert f"{100 * card.confidence:.0f} %" in text


def test_hallucinated_words_are_marked_in_any_form(tmp_path: Path, content: ReportContent) -> None:
    card = msgspec.structs.replace(
        content.cards[0], caption="Two Boxes by the ballroom, a box", correct=False, wrong_words=("cube", "ball")
    )
    write_report(tmp_path / "r.html", msgspec.structs.replace(content, cards=(card,)))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Two <mark>Boxes</mark> by the ballroom, a <mark>box</mark>" in html
    assert "Not in the picture: cube, ball" in html


def test_who_answered_decides_what_is_shown(html: str, content: ReportContent) -> None:
    text = Page(html).text
    assert f"The device alone: {content.cards[7].caption}" in text
    assert f"Withheld: {content.cards[10].caption}" in text
    assert text.count("Not sure enough to say anything.") == text.count("from the cloud") == 1
    assert "24 pictures: 22 right, 1 wrong, 1 kept quiet." in text


def test_hostile_words_stay_words(tmp_path: Path, content: ReportContent) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"
    card = msgspec.structs.replace(
        content.cards[0], caption=evil, truth=evil, cloud_caption=evil, wrong_words=("script", "", ".*", "(")
    )
    search = SearchCard(evil, (SearchHit(card.image, 0.5, evil),))
    row = msgspec.structs.replace(content.variants[0], target=evil, unmeasured=evil, notes=(evil,), cider=None)
    page = written(
        tmp_path,
        msgspec.structs.replace(
            content, title=evil, machine=evil, cards=(card,), searches=(search,), variants=(row,), cards_note=evil
        ),
    )
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.all("img")[0]["alt"] == evil
    assert {source["src"][:5] for source in page.all("img") if source["src"]} == {"data:"}
    assert evil in page.text
    assert "49" not in page.text.split("Captions")[0]


def test_what_was_not_measured_is_a_dash_with_its_reason(tmp_path: Path, content: ReportContent) -> None:
    row = VariantRow(target="coreml", precision="fp16", engine="CoreML", unmeasured="needs a Mac")
    nothing = msgspec.structs.replace(row, target="onnx", cider=math.nan, unmeasured="left out")
    versus = msgspec.structs.replace(content.comparison[0], int8=None, ratio=None, student=Figure(0.5))
    page = written(tmp_path, msgspec.structs.replace(content, variants=(row, nothing), comparison=(versus,)))
    titles = [attributes["title"] for attributes in page.all("span") if attributes.get("class") == "none"]
    assert titles.count("needs a Mac") == titles.count("left out") == 8
    assert titles.count("not measured") == 1
    assert "the teacher's figure is 0 or was not measured" in titles
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


def test_a_lean_run_still_gives_a_page(tmp_path: Path, content: ReportContent) -> None:
    lean = msgspec.structs.replace(
        content,
        cards=(),
        searches=(SearchCard("a cat", ()),),
        variants=(),
        comparison=(),
        targets=(),
        loss=(),
        seconds=(),
    )
    page = written(tmp_path, lean)
    assert "Nothing found." in page.text
    assert not page.all("polyline")
    assert not page.all("table")


def test_nothing_left_only_if_nothing_did(tmp_path: Path, content: ReportContent) -> None:
    assert "What left this device: nothing" in written(tmp_path, content).text
    sent = msgspec.structs.replace(content.fallback, left_machine=3)
    page = written(tmp_path, msgspec.structs.replace(content, fallback=sent))
    assert "What left this device: 3 pictures, 0 events" in page.text


@pytest.mark.parametrize("losses", [[3.0, 3.0], [2.0, math.nan, 1.0], [0.0, 0.0], [-1.0, -3.5], [1e-9, 5e4]])
def test_the_loss_curve_stays_in_its_box(tmp_path: Path, content: ReportContent, losses: list[float]) -> None:
    points = tuple(LossPoint(10 * i, loss) for i, loss in enumerate(losses))
    page = written(tmp_path, msgspec.structs.replace(content, loss=points))
    line = page.all("polyline")[0]["points"] or ""
    pairs = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert len(pairs) == sum(map(math.isfinite, losses))
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in pairs)
    assert pairs[0][0] == 0
    assert pairs[-1][0] == 100


def test_pictures_are_made_small_and_bare(tmp_path: Path, content: ReportContent) -> None:
    big = tmp_path / "big.jpg"
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(big, exif=exif)
    cards = tuple(msgspec.structs.replace(card, image=big) for card in content.cards)
    searches = tuple(
        SearchCard(s.query, tuple(SearchHit(big, h.score, h.caption) for h in s.hits)) for s in content.searches
    )
    write_report(tmp_path / "r.html", msgspec.structs.replace(content, cards=cards, searches=searches))
    written_bytes = (tmp_path / "r.html").read_bytes()
    assert len(written_bytes) < 3_000_000
    assert b"c2VjcmV0" not in written_bytes


def test_a_missing_picture_is_a_typed_error_and_keeps_the_old_report(tmp_path: Path, content: ReportContent) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    card = msgspec.structs.replace(content.cards[0], image=tmp_path / "gone.jpg")
    with pytest.raises(PictureError, match=r"gone\.jpg"):
        write_report(path, msgspec.structs.replace(content, cards=(card,)))
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path, content: ReportContent) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="where the report can be written"):
        write_report(tmp_path / "file" / "r.html", content)


def test_a_full_disk_keeps_the_old_report_and_leaves_no_half(
    tmp_path: Path, content: ReportContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFull):
        write_report(path, content)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]
