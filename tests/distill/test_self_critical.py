"""Training for CIDEr: the reward is CIDEr, it rises, embeddings stand still, and a run follows from its seed."""

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.errors import RecipeError, TrainingError
from pocketlens.distill import self_critical
from pocketlens.distill.cider_reward import CiderReward
from pocketlens.distill.evaluation.captions import cider_scores
from pocketlens.distill.recipe import LossWeights, Recipe, SelfCriticalRecipe
from pocketlens.distill.self_critical import drawn_captions, train_self_critical
from pocketlens.distill.students.student import Student
from pocketlens.distill.train import Progress, train
from tests.distill.compression.tiny_run import DIM, TinyRun

CORPUS = [
    ["a red ball on the grass", "one ball lies on the lawn"],
    ["two blue cars at night", "a pair of cars at night"],
    ["a pink duck on the lake", "a duck swims"],
]
SAID = ["a red ball on the lake", "two cars", "a duck swims on the lake at night"]


def test_the_reward_is_the_cider_of_the_evaluation() -> None:
    plain = CiderReward(CORPUS, with_end=False)
    assert np.allclose(plain.score(SAID, CORPUS), cider_scores(SAID, CORPUS))


def test_frequencies_are_those_of_the_corpus_and_not_of_the_batch() -> None:
    plain = CiderReward(CORPUS, with_end=False)
    whole = plain.score(SAID, CORPUS)
    assert plain.score(SAID[1:2], CORPUS[1:2])[0] == pytest.approx(whole[1])
    assert whole[1] > 0


def test_a_caption_that_breaks_off_is_worth_less() -> None:
    reward = CiderReward(CORPUS)
    same = ["a duck swims"] * 2
    ended, broken = reward.score(same, [CORPUS[2]] * 2, [True, False])
    assert broken < ended
    assert reward.score([""], CORPUS[:1])[0] >= 0.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def student(tiny: TinyRun) -> Student:
    """Trained until it says words of the captions, and no further."""
    recipe = tiny.recipe(150)
    plan = msgspec.structs.replace(
        recipe.train, checkpoint_every=50, losses=LossWeights(contrastive=0.0, affinity=0.0, feature=0.0)
    )
    recipe = msgspec.structs.replace(recipe, train=plan)
    return train(recipe, tiny.data, tiny.tokenizer, teacher_dim=DIM, run=tiny.root / "student")


def _recipe(tiny: TinyRun, **settings: object) -> Recipe:
    plan = SelfCriticalRecipe(**{"steps": 24, "samples": 4, "learning_rate": 4e-3, **settings})
    return msgspec.structs.replace(tiny.recipe(60), self_critical=plan)


def _greedy_cider(tiny: TinyRun, student: Student) -> float:
    with torch.no_grad():
        visual = student.image_encoder(torch.from_numpy(tiny.pixels))[1]
        drawn = drawn_captions(student, visual, tiny.tokenizer, generator=None)
    texts = [tiny.tokenizer.decode([i for i in ids if i != tiny.tokenizer.pad_id]) for ids in drawn.ids.tolist()]
    return float(cider_scores(texts, [sample.captions for sample in tiny.samples]).mean())


def _rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


@pytest.mark.parametrize("baseline", ["other", pytest.param("greedy", marks=pytest.mark.slow)])
def test_cider_rises_and_the_embeddings_stand_still(tiny: TinyRun, student: Student, baseline: str) -> None:
    run = tiny.root / baseline
    trained = train_self_critical(_recipe(tiny, baseline=baseline), tiny.data, tiny.tokenizer, student, run=run)
    rows = _rows(run)
    rewards = [row["reward"] for row in rows]
    assert list(rows[0]) == ["step", "loss", "self_critical", "reward", "baseline", "length"]
    assert np.mean(rewards[-6:]) > 1.2 * np.mean(rewards[:6])
    assert _greedy_cider(tiny, trained) > _greedy_cider(tiny, student)
    pixels, ids = torch.from_numpy(tiny.pixels), tiny.data.batch(0, 8).ids
    with torch.no_grad():
        assert torch.equal(trained.image_encoder(pixels)[0], student.image_encoder(pixels)[0])
        assert torch.equal(trained.text_encoder(ids), student.text_encoder(ids))


def test_a_killed_run_ends_with_the_same_weights(tiny: TinyRun, student: Student) -> None:
    class Killed(Exception):
        pass

    def kill(at: Progress) -> None:
        if at.step == 5:
            raise Killed

    recipe = _recipe(tiny, steps=8)
    unbroken = train_self_critical(recipe, tiny.data, tiny.tokenizer, student, run=tiny.root / "unbroken")
    with pytest.raises(Killed):
        train_self_critical(recipe, tiny.data, tiny.tokenizer, student, run=tiny.root / "killed", progress=kill)
    resumed = train_self_critical(recipe, tiny.data, tiny.tokenizer, student, run=tiny.root / "killed")
    own, other = unbroken.state_dict(), resumed.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny: TinyRun, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CiderReward, "score", lambda self, captions, *_: np.full(len(captions), np.nan))
    with pytest.raises(TrainingError, match=r"step 0.*self_critical nan"):
        train_self_critical(_recipe(tiny), tiny.data, tiny.tokenizer, student, run=tiny.root / "nan")


def test_one_sample_has_no_others(tiny: TinyRun, student: Student) -> None:
    with pytest.raises(RecipeError, match="samples"):
        train_self_critical(_recipe(tiny, samples=1), tiny.data, tiny.tokenizer, student, run=tiny.root / "one")


def test_special_tokens_are_no_text(tiny: TinyRun, student: Student) -> None:
    visual = student.image_encoder(torch.from_numpy(tiny.pixels))[1].detach()
    drawn = self_critical.drawn_captions(student, visual, tiny.tokenizer, generator=torch.Generator().manual_seed(1))
    for ids, ended in zip(drawn.ids.tolist(), drawn.ended.tolist(), strict=True):
        end = ids.index(tiny.tokenizer.eos_id) if ended else len(ids) - 1
        assert tiny.tokenizer.pad_id not in ids[: end + 1]
        assert set(ids[end + 1 :]) <= {tiny.tokenizer.pad_id}
