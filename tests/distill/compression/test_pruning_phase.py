"""`[pruning]` in a recipe: its place among the phases, its folder, and what a changed recipe finds there."""

import msgspec
import pytest
import torch

from pocketlens.core.errors import RecipeError, TrainingError
from pocketlens.distill.phases import Setting, run_phases, training_heads, without_phases
from pocketlens.distill.recipe import PruningRecipe, Recipe, SelfCriticalRecipe, read_recipe, write_recipe
from pocketlens.distill.students.student import Student, load_student
from pocketlens.distill.train import train
from tests.distill.compression.tiny_run import DIM, TinyRun


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe(tiny: TinyRun) -> Recipe:
    return msgspec.structs.replace(
        tiny.recipe(4),
        pruning=PruningRecipe(steps=3, channels=0.3, units=0.5),
        self_critical=SelfCriticalRecipe(steps=2, samples=2),
    )


@pytest.fixture(scope="module")
def setting(tiny: TinyRun) -> tuple[Setting, list[str]]:
    told: list[str] = []
    run = tiny.root / "student"
    run.mkdir()
    (run / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    return Setting(tiny.data, tiny.tokenizer, DIM, run, None, lambda name, _: told.append(name)), told


@pytest.fixture(scope="module")
def done(tiny: TinyRun, recipe: Recipe, setting: tuple[Setting, list[str]]) -> Student:
    whole = train(without_phases(recipe), tiny.data, tiny.tokenizer, teacher_dim=DIM, run=setting[0].run)
    return run_phases(recipe, whole, setting[0])


def test_pruning_comes_before_training_for_cider(
    tiny: TinyRun, setting: tuple[Setting, list[str]], done: Student
) -> None:
    run = setting[0].run
    assert list(dict.fromkeys(setting[1])) == ["pruned", "self_critical"]
    pruned, last = load_student(run / "pruned")[0], load_student(run)[0]
    assert pruned.config.pruned
    assert last.config == pruned.config == done.config
    pixels = torch.from_numpy(tiny.pixels[:2])
    with torch.no_grad():  # training for CIDEr leaves embeddings as they are
        assert torch.equal(last.image_encoder(pixels)[0], pruned.image_encoder(pixels)[0])
    assert not torch.equal(last.caption_decoder.logits.weight, pruned.caption_decoder.logits.weight)
    assert training_heads(run / "pruned").keys() == training_heads(run).keys() != set()


def test_a_finished_run_is_done_again_in_no_step(
    tiny: TinyRun, recipe: Recipe, setting: tuple[Setting, list[str]], done: Student
) -> None:
    before = len(setting[1])
    whole = train(without_phases(recipe), tiny.data, tiny.tokenizer, teacher_dim=DIM, run=setting[0].run)
    again = run_phases(recipe, whole, setting[0])
    assert len(setting[1]) == before
    assert all(map(torch.equal, again.state_dict().values(), done.state_dict().values()))


def test_another_share_is_refused_in_the_same_folder(
    tiny: TinyRun, recipe: Recipe, setting: tuple[Setting, list[str]], done: Student
) -> None:
    whole = train(without_phases(recipe), tiny.data, tiny.tokenizer, teacher_dim=DIM, run=setting[0].run)
    other = msgspec.structs.replace(recipe, pruning=PruningRecipe(steps=3, channels=0.1, units=0.5))
    with pytest.raises(TrainingError, match="another recipe"):
        run_phases(other, whole, setting[0])


def test_the_table_is_read_and_written(tiny: TinyRun, recipe: Recipe) -> None:
    path = tiny.root / "recipe.toml"
    write_recipe(path, recipe)
    assert read_recipe(path) == recipe
    path.write_text(path.read_text().replace("channels = 0.3", "channels = 1.0"))
    with pytest.raises(RecipeError, match="pruning"):
        read_recipe(path)
