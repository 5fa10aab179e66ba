import math

import numpy as np
import pytest

from pocketlens.distill.evaluation.captions import bleu_counts, caption_figures, cider_scores, tokenize
from pocketlens.distill.evaluation.metrics import Bootstrap

TEXTS = (
    "a red ball on the grass at sunset",
    "two large blue cars behind a small tree",
    "there is a pink duck on calm water",
    "three yellow mugs stand in a snowy field",
    "a photo of a white house by the sea",
)
REFERENCES = [[text] for text in TEXTS]


def _bleu(captions: "list[str]", references: "list[list[str]]") -> "list[float]":
    figures = caption_figures(captions, references, bootstrap=Bootstrap(len(captions), seed=0))
    return [figures[f"bleu{order}"].value for order in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Red ball, on the grass.", "a red ball on the grass"),
        ("  it's a  half-open\tbox!? ", "it's a half open box"),
        ("'quoted' _under_score 3 cups", "quoted under score 3 cups"),
        ("Ärger mit Öl", "ärger mit öl"),
        ("...", ""),
    ],
)
def test_texts_are_cut_into_lower_case_words(text: str, words: str) -> None:
    assert tokenize(text) == words


def test_cider_of_the_references_themselves_is_maximal() -> None:
    np.testing.assert_allclose(cider_scores(TEXTS, REFERENCES), 10.0)
    figure = caption_figures(TEXTS, REFERENCES, bootstrap=Bootstrap(5, seed=0))["cider"]
    assert figure.value == pytest.approx(1000.0)
    assert figure.low == pytest.approx(1000.0)


def test_cider_falls_with_every_wrong_word() -> None:
    wrong = ["a red ball on the grass at night", "a red cube on the grass at night", "a green cube on a lawn at night"]
    scores = [cider_scores([text, *TEXTS[1:]], REFERENCES)[0] for text in wrong]
    assert 10.0 > scores[0] > scores[1] > scores[2] > 0.0


def test_cider_ignores_the_order_of_pictures_and_of_references() -> None:
    captions = [TEXTS[1], "a red ball on a lawn", "a duck on the lake", TEXTS[0], "a house by the sea"]
    references = [[text, TEXTS[(i + 1) % 5]] for i, text in enumerate(TEXTS)]
    scores = cider_scores(captions, references)
    turned = cider_scores(captions[::-1], [pair[::-1] for pair in references[::-1]])
    np.testing.assert_allclose(turned[::-1], scores)
    assert 0.0 < scores[1] < scores[2]


def test_cider_of_foreign_words_is_zero() -> None:
    assert cider_scores(["purple whales everywhere", *TEXTS[1:]], REFERENCES)[0] == 0.0


def test_bleu_is_that_computed_by_hand() -> None:
    # Right: 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples; lengths are equal.
    scores = _bleu(["a red ball on the beach"], [["a red ball on the grass"]])
    product = 1.0
    for order, precision in enumerate((5 / 6, 4 / 5, 3 / 4, 2 / 3), start=1):
        product *= precision
        assert scores[order - 1] == pytest.approx(100 * product ** (1 / order), rel=1e-6)


def test_bleu_punishes_a_short_caption_by_the_closest_reference() -> None:
    # Three words against four or nine: the brevity penalty is exp(1 - 4 / 3).
    references = [["a red ball rolls", "there is a red ball on the grass outside"]]
    assert _bleu(["a red ball"], references)[0] == pytest.approx(100 * math.exp(1 - 4 / 3), rel=1e-6)


def test_bleu_counts_name_the_shorter_of_two_equally_close_references() -> None:
    row = bleu_counts(["a b c"], [["a b c d", "a b"]])[0]
    assert row.tolist() == [3, 2, 3, 2, 1, 0, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "caption",
    [
        "a red ball on the grass at sunset",
        "a red ball",
        "the a a a a ball",
        "whales",
        "",
        "a red ball on a lawn at sunset",
        "a red ball on the grass at sunset and nothing else",
    ],
)
def test_the_interval_of_equal_pictures_has_no_width(caption: str) -> None:
    # Every draw is then the whole set: this holds our corpus formula equal to the library's.
    figures = caption_figures([caption] * 4, [[TEXTS[0], TEXTS[1]]] * 4, bootstrap=Bootstrap(4, seed=0))
    for order in (1, 2, 3, 4):
        figure = figures[f"bleu{order}"]
        assert figure.low == pytest.approx(figure.value, rel=1e-6)
        assert figure.high == pytest.approx(figure.value, rel=1e-6)


def test_intervals_contain_their_values() -> None:
    captions = [*TEXTS[:2], "a duck", "three mugs in a field", "a red house by the sea at night"] * 6
    figures = caption_figures(captions, REFERENCES * 6, bootstrap=Bootstrap(30, seed=1))
    assert set(figures) == {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "caption_length"}
    for figure in figures.values():
        assert figure.low < figure.value < figure.high
        assert figure.samples == 30


def test_length_is_in_words_without_punctuation() -> None:
    figures = caption_figures(["A ball .", "a red ball!", ""], REFERENCES[:3], bootstrap=Bootstrap(3, seed=0))
    assert figures["caption_length"].value == pytest.approx(5 / 3)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    caption_figures(TEXTS, REFERENCES, bootstrap=Bootstrap(5, seed=0))
    assert capfd.readouterr() == ("", "")
