"""The first confidence: its features and its fit."""

import numpy as np
import pytest

from pocketlens.core.bundle import ConfidenceSpec
from pocketlens.core.captions import Caption
from pocketlens.core.errors import BundleSchemaError, DataError
from pocketlens.runtime.confidence import (
    FEATURES,
    FLOOR,
    caption_features,
    check_confidence,
    confidence_of,
    feature_table,
    fit_confidence,
)


def _table(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal([-0.5, -1.0, -2.0, 0.3], [0.2, 0.5, 1.0, 0.1], (count, 4))


def _likelihood(spec: ConfidenceSpec, table: np.ndarray, correct: np.ndarray) -> float:
    scores = np.array([confidence_of(row, spec) for row in table])
    return float(np.log(np.where(correct, scores, 1 - scores)).mean())


def test_features_are_mean_low_quantile_minimum_and_similarity() -> None:
    found = caption_features([-0.1, -0.2, -0.3, -0.4, -2.0, -0.5], 0.25)
    by_name = dict(zip(FEATURES, found, strict=True))
    assert by_name["mean_logprob"] == pytest.approx(-3.5 / 6)
    assert by_name["low_logprob"] == pytest.approx(-0.5)
    assert by_name["min_logprob"] == -2.0
    assert by_name["similarity"] == 0.25


def test_an_impossible_token_counts_no_more_than_the_floor() -> None:
    assert caption_features([-0.1, -1e6], None)[FEATURES.index("min_logprob")] == FLOOR
    assert np.isfinite(caption_features([], None)).all()


def test_the_built_in_confidence_grows_with_every_feature_and_stays_in_range() -> None:
    base = np.array([-1.0, -1.5, -2.0, 0.1])
    for index in range(len(FEATURES)):
        better = base.copy()
        better[index] += 0.5
        assert confidence_of(better, None) > confidence_of(base, None)
    assert 0 <= confidence_of(np.full(4, FLOOR), None) < 0.01
    assert 0.9 < confidence_of(np.array([0, 0, 0, 1.0]), None) <= 1


def test_the_fit_finds_the_coefficients_that_made_the_labels() -> None:
    truth = ConfidenceSpec(
        bias=2.0,
        weights={"mean_logprob": 3.0, "low_logprob": 1.0, "min_logprob": 0.5, "similarity": 4.0},
        fitted_on=0,
    )
    table = _table(20_000)
    chance = np.array([confidence_of(row, truth) for row in table])
    correct = np.random.default_rng(1).random(len(table)) < chance
    fitted = fit_confidence(table, correct)
    assert fitted.fitted_on == 20_000
    for name, weight in truth.weights.items():
        assert fitted.weights[name] == pytest.approx(weight, abs=0.45)
    assert fitted.bias == pytest.approx(truth.bias, abs=0.3)
    scores = np.array([confidence_of(row, fitted) for row in table])
    assert scores.mean() == pytest.approx(correct.mean(), abs=0.001)


def test_the_fit_beats_the_built_in_coefficients_on_pictures_that_it_has_not_seen() -> None:
    table, held_out = _table(400), _table(400, seed=7)
    correct, answers = table[:, 2] > -2.0, held_out[:, 2] > -2.0
    fitted = fit_confidence(table, correct)
    builtin = ConfidenceSpec(bias=1.0, weights={"mean_logprob": 1.5}, fitted_on=0)
    assert _likelihood(fitted, held_out, answers) > _likelihood(builtin, held_out, answers) + 0.2


@pytest.mark.parametrize("labels", [np.ones(30, bool), np.zeros(30, bool), np.arange(30) < 15])
def test_one_sided_or_separable_labels_give_finite_coefficients(labels: np.ndarray) -> None:
    table = _table(30)
    table[:, 0] = np.where(labels, -0.1, -3.0)
    fitted = fit_confidence(table, labels, l2=1e-3)
    assert np.isfinite([fitted.bias, *fitted.weights.values()]).all()
    scores = np.array([confidence_of(row, fitted) for row in table])
    assert ((scores > 0.5) == labels).all()


def test_a_constant_feature_gets_no_weight() -> None:
    table = _table(100)
    table[:, 3] = 0.0
    fitted = fit_confidence(table, table[:, 2] > -2.0)
    assert fitted.weights["similarity"] == 0


def test_features_that_do_not_fit_are_a_data_error() -> None:
    with pytest.raises(DataError, match="confidence features"):
        fit_confidence(np.zeros((3, 2)), np.ones(3, bool))
    with pytest.raises(DataError, match="confidence features"):
        fit_confidence(np.full((3, 4), np.nan), np.ones(3, bool))


def test_an_unknown_feature_in_a_manifest_is_refused() -> None:
    with pytest.raises(BundleSchemaError, match="mood"):
        check_confidence(ConfidenceSpec(bias=0.0, weights={"mood": 1.0}, fitted_on=1))


def test_the_feature_table_has_one_row_per_caption() -> None:
    caption = Caption(
        text="a",
        confidence=0.5,
        source="device",
        model_version="v",
        token_logprobs=(-1.0, -0.5),
        similarity=0.5,
    )
    assert feature_table([caption, caption]).shape == (2, len(FEATURES))
    assert feature_table([]).shape == (0, len(FEATURES))
