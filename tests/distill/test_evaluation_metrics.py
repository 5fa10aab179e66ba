import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.distill.evaluation.metrics import (
    Bootstrap,
    class_vector,
    hallucination_figures,
    recall_at_k,
    retrieval_ranks,
    zero_shot_accuracy,
)
from pocketlens.distill.evaluation.questions import prepare_questions
from pocketlens.distill.evaluation.scorecard import right_captions
from pocketlens.distill.scenes import SceneSample

# Two pictures with two texts each; angles in degrees make every cosine obvious.
IMAGE_ANGLES = (0, 90)
TEXT_ANGLES = (10, 80, 95, 20)
OWNERS = np.array([0, 0, 1, 1])


def _unit(angles: "tuple[float, ...]") -> NDArray[np.float32]:
    radians = np.deg2rad(np.array(angles))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def _sample(*kinds: str) -> SceneSample:
    return SceneSample(
        id="test/0", image="test/0.jpg", captions=(), kinds=kinds, objects=(), background="grass", light="day", seed=0
    )


def test_ranks_are_those_counted_by_hand() -> None:
    image_ranks, text_ranks = retrieval_ranks(_unit(IMAGE_ANGLES), _unit(TEXT_ANGLES), OWNERS)
    # Picture 0 finds 10° first; picture 1 finds 95° first (80° is further away).
    assert image_ranks.tolist() == [1, 1]
    # 10° is nearest to 0°, 80° to 90° (wrong), 95° to 90°, 20° to 0° (wrong).
    assert text_ranks.tolist() == [1, 2, 1, 2]


def test_a_picture_is_found_by_its_best_caption_alone() -> None:
    # Own captions of picture 0 at 5° and 170°; one foreign text at 30°.
    image_ranks, _ = retrieval_ranks(_unit((0, 90)), _unit((5, 170, 30)), np.array([0, 0, 1]))
    assert image_ranks[0] == 1


def test_own_captions_do_not_push_each_other_back() -> None:
    # Picture 0 at 0°: a foreign text at 1° is first, own ones at 2°, 2° and 3° follow.
    image_ranks, _ = retrieval_ranks(_unit((0, 90)), _unit((2, 2, 3, 1)), np.array([0, 0, 0, 1]))
    assert image_ranks[0] == 2


def test_a_tie_counts_against_the_system() -> None:
    same = np.ones((6, 4), dtype=np.float32) / 2
    image_ranks, text_ranks = retrieval_ranks(same, np.repeat(same, 2, axis=0), np.repeat(np.arange(6), 2))
    assert image_ranks.tolist() == [11] * 6  # the ten texts of the others stand before
    assert text_ranks.tolist() == [6] * 12


@pytest.mark.parametrize("broken", ["image", "text", "both"])
def test_vectors_that_are_not_numbers_rank_last(broken: str) -> None:
    images, texts = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    if broken in ("image", "both"):
        images[2] = np.nan
    if broken in ("text", "both"):
        texts[2] = np.nan
    image_ranks, text_ranks = retrieval_ranks(images, texts, np.arange(4))
    assert image_ranks[2] == 4
    assert text_ranks[2] == 4


def test_ranks_agree_with_sorting_over_many_blocks() -> None:
    rng = np.random.default_rng(4)
    images = rng.normal(size=(300, 8)).astype(np.float32)
    texts = rng.normal(size=(600, 8)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    owners = np.repeat(np.arange(300), 2)
    image_ranks, text_ranks = retrieval_ranks(images, texts, owners)
    scores = images @ texts.T
    for picture in (0, 255, 256, 299):
        order = owners[np.argsort(-scores[picture])]
        assert image_ranks[picture] == 1 + np.flatnonzero(order == picture)[0]
    for text in (0, 256, 511, 599):
        order = np.argsort(-scores[:, text])
        assert text_ranks[text] == 1 + np.flatnonzero(order == owners[text])[0]


def test_recall_is_that_counted_by_hand() -> None:
    figures = recall_at_k(_unit(IMAGE_ANGLES), _unit(TEXT_ANGLES), OWNERS, bootstrap=Bootstrap(2, seed=0))
    assert {name: figure.value for name, figure in figures.items()} == {
        "r1_i2t": 1.0,
        "r5_i2t": 1.0,
        "r10_i2t": 1.0,
        "r1_t2i": 0.5,
        "r5_t2i": 1.0,
        "r10_t2i": 1.0,
    }


def test_recall_weighs_every_caption_alike_when_pictures_have_different_numbers() -> None:
    # Picture 0 has three captions, all wrong; picture 1 has one, right.
    figures = recall_at_k(
        _unit((0, 90)), _unit((80, 85, 95, 90)), np.array([0, 0, 0, 1]), bootstrap=Bootstrap(2, seed=0)
    )
    assert figures["r1_t2i"].value == 0.25


def test_a_random_system_is_at_chance() -> None:
    rng = np.random.default_rng(11)
    images = rng.normal(size=(400, 16)).astype(np.float32)
    texts = rng.normal(size=(2000, 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    figures = recall_at_k(images, texts, np.repeat(np.arange(400), 5), bootstrap=Bootstrap(400, seed=1))
    for name, chance in (("r10_t2i", 10 / 400), ("r10_i2t", 0.025)):
        assert figures[name].low <= chance <= figures[name].high
        assert figures[name].high < 0.06


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, size=400)
    figure = Bootstrap(400, seed=5).mean(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert figure.value - figure.low == pytest.approx(half, rel=0.15)
    assert figure.high - figure.value == pytest.approx(half, rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(8)
    bootstrap = Bootstrap(100, seed=3)
    figures = [bootstrap.mean((rng.random(100) < 0.3).astype(np.float64)) for _ in range(200)]
    covered = np.mean([figure.low <= 0.3 <= figure.high for figure in figures])
    assert 0.88 <= covered <= 0.99


def test_a_ratio_draws_pictures_and_not_their_parts() -> None:
    # All that is wrong sits in one picture of four: some draws miss it, some take it twice.
    figure = Bootstrap(4, seed=0).ratio(np.array([10.0, 0, 0, 0]), np.array([10.0, 10, 10, 10]))
    assert figure.value == 0.25
    assert figure.low == 0.0
    assert figure.high == 0.75


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert Bootstrap(50, seed=5).mean(values) == Bootstrap(50, seed=5).mean(values)
    assert Bootstrap(50, seed=5).mean(values).low != Bootstrap(50, seed=6).mean(values).low


def test_a_ratio_of_nothing_is_wholly_uncertain() -> None:
    figure = Bootstrap(3, seed=0).ratio(np.zeros(3), np.zeros(3))
    assert (figure.value, figure.low, figure.high, figure.samples) == (0.0, 0.0, 1.0, 0)


def test_draws_that_miss_every_whole_are_left_out() -> None:
    figure = Bootstrap(5, seed=0).ratio(np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0, 0, 0, 0]))
    assert (figure.value, figure.low, figure.high, figure.samples) == (1.0, 1.0, 1.0, 1)


def test_a_class_is_the_renormalised_mean_of_its_normalised_prompts() -> None:
    prompts = np.array([[5.0, 0.0], [0.0, 0.1]], dtype=np.float32)
    np.testing.assert_allclose(class_vector(prompts), np.sqrt([0.5, 0.5]), rtol=1e-6)


def test_zero_shot_counts_only_labelled_pictures() -> None:
    images, classes = _unit((10, 80, 40, 0)), _unit((0, 90))
    figure = zero_shot_accuracy(images, classes, np.array([0, 1, 1, -1]), bootstrap=Bootstrap(4, seed=0))
    assert figure.value == pytest.approx(2 / 3)  # 40° is nearer to 0° than to 90°
    assert figure.samples == 3
    assert figure.low <= figure.value <= figure.high


def test_zero_shot_of_a_tie_is_wrong() -> None:
    images, classes = _unit((45, 45)), _unit((0, 90))
    figure = zero_shot_accuracy(images, classes, np.array([0, 1]), bootstrap=Bootstrap(2, seed=0))
    assert figure.value == 0.0


def test_hallucination_is_counted_by_kind_whatever_the_synonym() -> None:
    captions = [
        "A toadstool beside two automobiles",  # both there
        "a mug and a cup near a ship",  # one kind by two names, and a boat that is not there
        "a green meadow at night",  # names nothing
        "a fish",  # wrong
    ]
    truths = [("car", "mushroom"), ("cup",), ("tree",), ("duck", "heart")]
    figures = hallucination_figures(captions, truths, bootstrap=Bootstrap(4, seed=0))
    assert figures["hallucination"].value == pytest.approx(2 / 5)
    assert figures["hallucination"].samples == 3
    assert figures["hallucination_captions"].value == pytest.approx(2 / 4)
    assert figures["missed"].value == pytest.approx(3 / 6)
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())


def test_captions_that_name_nothing_miss_everything_and_prove_nothing() -> None:
    figures = hallucination_figures(["", "on the grass"], [("car",), ("cup",)], bootstrap=Bootstrap(2, seed=0))
    assert figures["missed"].value == 1.0
    assert (figures["hallucination"].high, figures["hallucination"].samples) == (1.0, 0)


def test_a_caption_is_correct_when_it_names_all_kinds_and_no_other() -> None:
    samples = [_sample("boat", "tree")] * 4
    captions = ["a tree behind a sailboat", "a tree", "a tree, a boat and a star", "nothing"]
    questions = prepare_questions(samples, probed_pictures=0)
    assert right_captions(captions, questions).tolist() == [True, False, False, False]


def test_correctness_does_not_depend_on_the_order_of_words() -> None:
    orders = [" ".join(words) for words in itertools.permutations(["ducks", "houses", "red"])]
    questions = prepare_questions([_sample("duck", "house")] * len(orders), probed_pictures=0)
    assert right_captions(orders, questions).all()
