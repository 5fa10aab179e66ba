import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import DataError
from pocketlens.distill.evaluation.agreement import Level, krippendorff_alpha
from pocketlens.distill.evaluation.rating_sheet import RatingKey, read_key, write_sheet
from pocketlens.distill.evaluation.ratings import Rating, Ratings, Verdict, rating_report, read_ratings

_ = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(PUBLISHED, level=level) == pytest.approx(alpha, abs=0.0005)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]]), level="nominal") == 1.0
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 1]]), level="nominal") < 0
    for nothing in ([[1.0, 1], [1, 1]], [[1.0, _], [_, 2]]):
        assert np.isnan(krippendorff_alpha(np.array(nothing), level="ordinal"))


KEY = RatingKey(("small", "big"), "00" * 32, (("p0", 0), ("p1", 1), ("p2", 0), ("p3", 1)))


UNSAID = Verdict()


def _rater(name: str, *prefers: str | None, left: Verdict = UNSAID, right: Verdict = UNSAID) -> Ratings:
    rows = tuple(Rating(pair, left, right, wins) for pair, wins in enumerate(prefers))  # type: ignore[arg-type]
    return Ratings(1, KEY.seal, name, rows)


def test_the_win_rate_looks_through_the_blinding() -> None:
    # small is left, right, left, right: it wins pair 0 and 1, loses 2, and 3 is even
    one = _rater("one", "left", "right", "right", "neither")
    report = rating_report([one, _rater("two", "left", "right", None, None)], KEY)
    assert report.votes == {"A": 4, "B": 1, "neither": 1}
    assert report.win_rate.value == pytest.approx(4.5 / 6)
    assert report.win_rate.low < 4.5 / 6 < report.win_rate.high
    assert (report.raters, report.pairs, report.systems) == (2, 4, ("small", "big"))
    assert np.isnan(report.preference_alpha)  # both pairs with two votes are all for A


def test_verdicts_go_to_the_system_that_wrote_the_caption() -> None:
    good, bad = Verdict(5, False, 4), Verdict(2, True, 1)
    report = rating_report([_rater("one", "left", "left", left=good, right=bad)], KEY)
    # left is small in pair 0 and big in pair 1: each got one good and one bad verdict
    assert report.figures["A_correct"].value == report.figures["B_correct"].value == 3.5
    assert report.figures["A_invented"].value == 0.5
    only = msgspec.structs.replace(_rater("one", "left", left=good, right=bad))
    alone = rating_report([only], KEY).figures
    assert (alone["A_useful"].value, alone["B_useful"].value, alone["A_minus_B_useful"].value) == (4, 1, 3)


def test_alpha_of_questions_counts_each_caption_as_a_unit() -> None:
    one = _rater("one", "left", left=Verdict(5, False), right=Verdict(1, True))
    other = _rater("two", "left", left=Verdict(5, False), right=Verdict(1, True))
    assert rating_report([one, other], KEY).alpha["correct"] == 1.0
    assert rating_report([one, other], KEY).alpha["invented"] == 1.0


def test_ratings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(_rater("one", "left")))
    assert read_ratings(path, KEY) == _rater("one", "left")
    other = RatingKey(KEY.systems, "11" * 32, KEY.pairs)
    with pytest.raises(DataError, match="seal"):
        read_ratings(path, other)
    twice = msgspec.structs.replace(_rater("one"), ratings=(Rating(1), Rating(1)))
    for wrong in (msgspec.json.encode(twice), b"{}", msgspec.json.encode(_rater("x", *["left"] * 5))):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"r\.json"):
            read_ratings(path, KEY)
    with pytest.raises(DataError, match="twice: one"):
        rating_report([_rater("one", "left"), _rater("one", "right")], KEY)
    with pytest.raises(DataError, match="0 pairs"):
        rating_report([_rater("one")], KEY)


IDS = [f"test/{row}" for row in range(6)]
CAPTIONS = (["one", "two", "three", "same", "five", "<b>six</b>"], ["eins", "zwei", "drei", "same ", "", "sechs"])


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{row}.png" for row in range(6)]
    for row, path in enumerate(paths):
        Image.new("RGB", (64, 48), (40 * row, 90, 120)).save(path)
    return paths


def _sheet(folder: Path, pictures: list[Path], **changes: object) -> RatingKey:
    options: dict[str, object] = {"pairs": 10, "secret": "7f" * 32} | changes
    return write_sheet(folder, pictures, IDS, CAPTIONS, ("petit", "grand"), **options)  # type: ignore[arg-type]


def test_a_sheet_tells_nothing_that_only_the_key_may_tell(tmp_path: Path, pictures: list[Path]) -> None:
    key = _sheet(tmp_path / "a", pictures)
    page = (tmp_path / "a" / "sheet.html").read_text(encoding="utf-8")
    assert {name for name, _ in key.pairs} == set(IDS) - {"test/3"}  # equal captions are left out
    assert {left for _, left in key.pairs} == {0, 1}
    assert key.seal in page
    for secret in ("petit", "grand", key.secret, "test/0"):
        assert secret not in page
    assert "<b>six</b>" not in page
    assert "&lt;b&gt;six&lt;/b&gt;" in page
    assert "://" not in page
    assert read_key(tmp_path / "a" / "key.json") == key
    assert (tmp_path / "a" / "key.json").stat().st_mode & 0o077 == 0


def test_the_secret_decides_the_order_and_the_seal(tmp_path: Path, pictures: list[Path]) -> None:
    first, again = _sheet(tmp_path / "a", pictures), _sheet(tmp_path / "b", pictures)
    assert first == again
    assert (tmp_path / "a" / "sheet.html").read_bytes() == (tmp_path / "b" / "sheet.html").read_bytes()
    fresh = [_sheet(tmp_path / name, pictures, secret="", pairs=2) for name in ("c", "d")]
    assert fresh[0].seal != fresh[1].seal
    assert len(fresh[0].pairs) == 2
    swapped = msgspec.structs.replace(first, systems=("grand", "petit"))
    assert swapped.seal != first.seal


def test_a_sheet_is_not_written_over_nor_about_nothing(tmp_path: Path, pictures: list[Path]) -> None:
    _sheet(tmp_path / "a", pictures)
    with pytest.raises(DataError, match="earlier sheet"):
        _sheet(tmp_path / "a", pictures)
    same = (CAPTIONS[0], CAPTIONS[0])
    with pytest.raises(DataError, match="differ in at least one"):
        write_sheet(tmp_path / "b", pictures, IDS, same, ("small", "big"), pairs=3)
    assert not (tmp_path / "b").exists()
    with pytest.raises(DataError, match=r"key\.json"):
        read_key(tmp_path / "b" / "key.json")


# Drives the page as a rater would, then writes what it would export into the page, for --dump-dom.
_RATER = """<script>
const press = (key, code, shift) =>
  document.dispatchEvent(new KeyboardEvent("keydown", { key, code, shiftKey: shift }));
if (!localStorage.getItem(store) || !JSON.parse(localStorage.getItem(store)).rater) {
  rater.value = "Ada"; rater.dispatchEvent(new Event("input"));
  press("4", "Digit4", false); press("%", "Digit5", true); press("j", "KeyJ", false);
  press("f", "KeyF", false); press("2", "Digit2", false); press("h", "KeyH", false);
  press("a", "KeyA", false); press("n", "KeyN", false); press("s", "KeyS", false);
}
const shown = pairs.filter(one => !one.hidden).map(one => Number(one.dataset.pair));
const result = { shown, done: document.getElementById("progress").value,
  ratings: ratingsOf(answers(), rater.value, pairs.length, seal) };
const place = document.createElement("pre"); place.id = "result"; place.textContent = JSON.stringify(result);
document.body.replaceChildren(place);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_rater_answers_by_keyboard_and_finds_the_answers_again(tmp_path: Path, pictures: list[Path]) -> None:
    key = _sheet(tmp_path / "a", pictures)
    page = tmp_path / "driven.html"
    text = (tmp_path / "a" / "sheet.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", _RATER), encoding="utf-8")
    found = [_dumped(page, tmp_path / "profile") for _ in range(2)]
    assert found[0]["shown"] == [1]
    assert found[0]["done"] == 2
    expected = [
        Rating(0, Verdict(4, False, 5), Verdict(2, True, None), "left"),
        Rating(1, Verdict(), Verdict(), "neither"),
    ]
    ratings = tmp_path / "ratings.json"
    ratings.write_text(json.dumps(found[0]["ratings"]))
    assert read_ratings(ratings, key) == Ratings(1, key.seal, "Ada", tuple(expected))
    assert found[1] == found[0]  # opened again: nothing was pressed, all was kept


def _dumped(page: Path, profile: Path) -> dict[str, object]:
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    start, end = done.stdout.index('<pre id="result">') + 17, done.stdout.index("</pre>")
    return dict(json.loads(done.stdout[start:end]))
