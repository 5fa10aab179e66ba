"""Every figure against values computed by hand."""

import numpy as np
import pytest

from pocketlens.core.errors import DataError
from pocketlens.distill.evaluation.calibration import calibration_error, calibration_figures, risk_area, risk_coverage
from pocketlens.distill.evaluation.captions import rouge_scores
from pocketlens.distill.evaluation.clipscore import check_judge, clip_scores, clipscore_figures, reference_scores
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
from pocketlens.distill.evaluation.vocabulary import vocabulary_figures


def test_rouge_is_the_longest_common_subsequence_against_the_best_reference() -> None:
    # two of three words are common in order: P 2/3, R 1, beta 1.2: 2.44 * 2/3 / (1 + 1.44 * 2/3)
    scores = rouge_scores(["A b, c.", "x", ""], [["a c"], ["y", "x"], ["y"]])
    assert scores.tolist() == pytest.approx([2.44 * 2 / 3 / (1 + 1.44 * 2 / 3), 1.0, 0.0])


def test_vocabulary_counts_words_wordings_and_repetitions() -> None:
    captions = ["a dog", "A dog.", "a cat and a cat"]
    found = vocabulary_figures(captions, bootstrap=Bootstrap(3, seed=0))
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {
            "vocabulary": 4,  # a, dog, cat, and
            "distinct_captions": 2 / 3,
            "distinct2": 4 / 6,  # a dog, a cat, cat and, and a
            "repeated_captions": 2 / 3,
            "repeated_words": 2 / 9,  # the second "a cat"
            "empty_captions": 0,
        }
    )
    # Leaving out the third caption loses "cat" and "and": its influence is 2 * 2/3, each draw has it 0 to 3 times.
    assert found["vocabulary"].low == pytest.approx(4 - 4 / 3)
    assert found["vocabulary"].high > 4


def test_vocabulary_of_nothing_said() -> None:
    found = vocabulary_figures(["", "..."], bootstrap=Bootstrap(2, seed=0))
    assert (found["vocabulary"].value, found["distinct2"].value, found["empty_captions"].value) == (0, 0, 1)
    assert found["repeated_words"].samples == 0


def test_clipscore_is_the_clipped_cosine_times_two_and_a_half() -> None:
    images = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    captions = np.array([[0.6, 0.8], [-0.6, 0.8], [0, 1]], dtype=np.float32)
    scores = clip_scores(images, captions)
    assert scores.tolist() == pytest.approx([1.5, 0.0, 2.5])
    # the best reference of the first has cosine 0.8, of the second nothing above 0, of the third 0.6
    references = np.array([[0, 1], [0, -1], [0.8, 0.6], [0.8, 0.6]], dtype=np.float32)
    with_references = reference_scores(scores, captions, references, np.array([0, 1, 2, 0]))
    assert with_references.tolist() == pytest.approx([2 * 1.5 * 0.96 / 2.46, 0.0, 2 * 2.5 * 0.6 / 3.1])
    figures = clipscore_figures(scores, with_references, bootstrap=Bootstrap(3, seed=0))
    assert figures["clipscore"].value == pytest.approx(4 / 3)


def test_a_model_does_not_judge_itself() -> None:
    check_judge("judge", ("aa", "bb"), "student", ("cc",))
    with pytest.raises(DataError, match=r"judge big: expected another model.*found student, the same model"):
        check_judge("big", ("aa", "bb"), "student", ("cc", "bb"))


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    confidence = np.array([0.9, 0.9, 0.1, 0.1, 1.0])
    correct = np.array([True, False, False, False, True])
    # the last bin holds 0.9, 0.9 and 1.0 with two right ones: |2 - 2.8|; the second two wrong ones: |0 - 0.2|
    once = np.ones((1, 5))
    assert calibration_error(confidence, correct, once) == pytest.approx([(0.8 + 0.2) / 5])
    assert calibration_error(confidence, correct, np.array([[0.0, 0, 1, 3, 0]])) == pytest.approx([0.1])


def test_risk_area_is_the_mean_risk_over_all_coverages() -> None:
    confidence, correct = np.array([0.6, 0.9, 0.8, 0.7]), np.array([False, True, False, True])
    # in falling confidence: right, wrong, right, wrong
    assert risk_area(confidence, correct, np.ones((1, 4))) == pytest.approx([(0 + 1 / 2 + 1 / 3 + 1 / 2) / 4])
    # the wrong one at 0.8 counted twice: 0, then two at 2/3, then 2/4, then 3/5
    weighted = risk_area(confidence, correct, np.array([[1.0, 1, 2, 1]]))
    assert weighted == pytest.approx([(0 + 2 * 2 / 3 + 2 / 4 + 3 / 5) / 5])
    curve = risk_coverage(confidence, correct)
    assert [(point.coverage, point.confidence) for point in curve] == [(0.25, 0.9), (0.5, 0.8), (0.75, 0.7), (1.0, 0.6)]
    assert [point.risk for point in curve] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


@pytest.mark.parametrize("correct", [[True, False, False], [False, False, True]])
def test_captions_of_one_confidence_are_accepted_together(correct: list[bool]) -> None:
    same = np.full(3, 0.5)
    assert risk_area(same, np.array(correct), np.ones((1, 3))) == pytest.approx([2 / 3])
    assert len(risk_coverage(same, np.array(correct))) == 1


def test_calibration_figures_have_all_names_and_an_interval() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    correct = rng.random(200) < confidence
    figures = calibration_figures(confidence, correct, bootstrap=Bootstrap(200, seed=1))
    assert set(figures) == {"ece", "aurc", "right"}
    assert figures["right"].value == correct.mean()
    assert all(figure.low < figure.high and figure.samples == 200 for figure in figures.values())
    assert figures["aurc"].low < figures["aurc"].value < figures["aurc"].high


def test_a_paired_difference_is_as_sharp_as_the_difference_itself() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(50)
    bootstrap = Bootstrap(50, seed=0)
    worse, better = bootstrap.mean(values), bootstrap.mean(values + 0.25)
    assert better.high - better.low > 0.05
    found = bootstrap.difference(better, worse)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.samples == 50


def test_a_relative_loss_is_one_minus_the_ratio() -> None:
    bootstrap = Bootstrap(40, seed=0)
    values = np.random.default_rng(1).random(40)
    before, after = bootstrap.mean(values), bootstrap.mean(values * 0.6)
    found = bootstrap.loss(after, before)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))
    nothing = bootstrap.loss(after, bootstrap.mean(np.zeros(40)))
    assert (nothing.value, nothing.low, nothing.high, nothing.samples) == (0.0, 0.0, 1.0, 0)


def test_draws_without_a_whole_do_not_shift_the_others() -> None:
    bootstrap = Bootstrap(3, seed=0)
    rare = bootstrap.ratio(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]))
    every = bootstrap.mean(np.array([1.0, 0, 0]))
    assert np.array_equal(np.isnan(bootstrap.drawn(rare)), bootstrap.drawn(every) == 0)
    assert (rare.low, rare.high) == (1.0, 1.0)


def test_draws_of_another_bootstrap_are_not_mistaken_for_its_own() -> None:
    twin = Figure(value=0.5, low=0.5, high=0.5, samples=2)
    bootstrap = Bootstrap(2, seed=0)
    assert bootstrap.mean(np.array([0.5, 0.5])) == twin
    with pytest.raises(KeyError, match="another bootstrap"):
        bootstrap.drawn(twin)
