"""Which words count as concepts, and the loss on them."""

import math

import numpy as np
import pytest
import torch

from pocketlens.distill.concepts import concept_loss, find_concepts

THINGS = ("duck", "cube", "boat", "tree", "fish", "star")


def _captions(pictures: int) -> list[tuple[str, ...]]:
    """Each picture shows one thing; its three captions agree on the thing and not on their first word."""
    rng = np.random.default_rng(0)
    openings = ("photo of a", "picture of the", "here we see a", "there is a")
    return [
        tuple(f"{openings[rng.integers(4)]} {THINGS[picture % len(THINGS)]}" for _ in range(3))
        for picture in range(pictures)
    ]


def test_the_concepts_are_what_the_captions_of_a_picture_agree_on() -> None:
    concepts = find_concepts(_captions(240))
    assert set(concepts.words) == set(THINGS)
    labels = concepts.labels(_captions(240)[:12])
    for row in range(12):
        assert [concepts.words[k] for k in np.flatnonzero(labels[row])] == [THINGS[row % len(THINGS)]]
    assert concepts.weights.mean() == pytest.approx(1.0)


def test_a_rarer_thing_weighs_more() -> None:
    captions = [("a duck", "one duck")] * 60 + [("a boat", "one boat")] * 20 + [("a", "one")] * 220
    concepts = find_concepts(captions)
    weights = dict(zip(concepts.words, concepts.weights, strict=True))
    assert weights["boat"] > 2 * weights["duck"]


def test_case_does_not_matter_and_punctuation_is_no_word() -> None:
    captions = [("A Duck.", "duck!")] * 10 + [("a", "b")] * 90
    concepts = find_concepts(captions)
    assert concepts.words == ("duck",)
    assert concepts.labels(captions)[:, 0].tolist() == [True] * 10 + [False] * 90


@pytest.mark.parametrize("captions", [[], [("a duck",)] * 50, [()] * 3])
def test_without_two_captions_a_picture_there_are_no_concepts(captions: list[tuple[str, ...]]) -> None:
    concepts = find_concepts(captions)
    assert concepts.words == ()
    assert concepts.labels(captions).shape == (len(captions), 0)


def test_the_loss_is_summed_over_words_and_averaged_over_pictures() -> None:
    labels = torch.tensor([[True, False], [False, False]])
    weights = torch.tensor([1.5, 0.5])
    assert concept_loss(torch.zeros(2, 2), labels, weights).item() == pytest.approx(2.0 * math.log(2.0))
    sure = torch.tensor([[30.0, -30.0], [-30.0, -30.0]])
    assert concept_loss(sure, labels, weights).item() == pytest.approx(0.0, abs=1e-6)
