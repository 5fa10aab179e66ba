from pathlib import Path

import pytest

from pocketlens.core.errors import RecipeError
from pocketlens.distill.recipe import read_recipe, write_recipe
from pocketlens.distill.schedule import warmup_cosine

GOOD = """
name = "x"
[data]
source = "scenes"
train = 10
val = 1
test = 1
[train]
steps = 5
"""


def _read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_a_recipe_survives_being_written_with_every_default_spelled_out(tmp_path: Path) -> None:
    recipe = _read(tmp_path, GOOD)
    write_recipe(tmp_path / "resolved.toml", recipe)  # type: ignore[arg-type]
    assert read_recipe(tmp_path / "resolved.toml") == recipe
    assert "weight_decay" in (tmp_path / "resolved.toml").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("steps", "stesp"), "stesp"),
        (GOOD + "epochs = 3\n", "epochs"),
        (GOOD.replace("steps = 5", 'steps = "five"'), "steps"),
        (GOOD.replace("train = 10", "train = 0"), "train"),
        (GOOD.replace("[data]", "[data"), "recipe"),
        (GOOD + "batch = 1\n", "batch"),
    ],
)
def test_a_wrong_recipe_says_which_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _read(tmp_path, text)


def test_a_missing_recipe_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.toml")


def test_an_unknown_preset_lists_the_known_ones(tmp_path: Path) -> None:
    recipe = _read(tmp_path, GOOD + '[student]\npreset = "giant"\n')
    with pytest.raises(RecipeError, match="nano"):
        recipe.preset()  # type: ignore[attr-defined]


def test_every_shipped_recipe_is_valid() -> None:
    folder = Path(__file__).parents[2] / "src" / "pocketlens" / "demo" / "recipes"
    names = {path.stem: read_recipe(path).name for path in folder.glob("*.toml") if not path.stem.startswith("export")}
    assert {"demo", "full", "quick"} <= names.keys()


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, total=100, warmup=10, peak=1.0, floor=0.01) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 <= rates[-1] < 0.012


@pytest.mark.parametrize("name", ["coco-small", "cc3m-base", "photo-library-small"])
def test_the_recipes_for_real_data_are_valid_and_name_what_they_need(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
    assert recipe.preset()
    assert recipe.train.batch % recipe.train.micro_batches == 0
    assert recipe.teachers.embedder_licence
    assert recipe.teachers.captioner_licence
