from pathlib import Path

import pytest

from pocketlens.core.errors import RecipeError
from pocketlens.export import VARIANTS, ExportRecipe, load_recipe
from pocketlens.export.recipe import split_variant


def test_a_recipe_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "export.toml"
    path.write_text(
        'variants = ["onnx-int8"]\nseed = 3\n'
        '[gates]\naccept_slower = ["caption_decode", "onnx-int8/text_encoder"]\nmin_speedup = 1.1\n'
    )
    recipe = load_recipe(path)
    assert recipe.variants == ("onnx-int8",)
    assert recipe.gates.accept_slower == ("caption_decode", "onnx-int8/text_encoder")
    assert (recipe.seed, recipe.gates.min_speedup) == (3, 1.1)
    assert recipe.gates.fp32_min_cosine == 0.9999


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flavour = 1", "unknown field `flavour`"),
        ('variants = ["onnx-int3"]', "Invalid enum value 'onnx-int3'"),
        ("variants = []", "expected each variant once"),
        ('variants = ["onnx-fp32", "onnx-fp32"]', "expected each variant once"),
        ("latency_runs = 0", "latency_runs: expected at least 1"),
        ("workers = -1", "workers: expected 0 or more"),
        ('[gates]\naccept_slower = ["ears"]', "variant/role, found 'ears'"),
        ("seed =", "seed"),
    ],
)
def test_a_wrong_recipe_is_one_typed_error(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "export.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in caught.value.what
    if words != "seed":
        assert words in caught.value.found


def test_a_missing_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.toml")


def test_everything_is_exported_by_default_and_nothing_slower_is_accepted() -> None:
    assert ExportRecipe().variants == VARIANTS
    assert ExportRecipe().gates.accept_slower == ()
    assert split_variant("executorch-int8") == ("executorch", "int8")
