from importlib import import_module
from pathlib import Path

import pytest

from pocketlens.core.errors import RecipeError
from pocketlens.export import VARIANTS, ExportRecipe, load_recipe
from pocketlens.export.recipe import DEFAULT_VARIANTS, choose_variants, split_variant
from pocketlens.export.targets import TARGETS


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
        ("[gates.limits.int3]\nmean_cosine = 0.9", "variant/role, found 'int3'"),
        ("[gates.limits.int4]\nmax_cosine = 0.9", "unknown field `max_cosine`"),
        ("coreml_samples = -1", "coreml_samples: expected 0 or more"),
        ('[gates]\nrequire_parity = ["ears"]', "variant/role, found 'ears'"),
        (
            '[gates.limits."onnx-int8/text_encoder"]\ncider_loss = 1.0',
            "expected one of image_encoder, caption_prefill, caption_decode, found text_encoder",
        ),
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


def test_the_default_is_part_of_everything_and_nothing_slower_is_accepted() -> None:
    assert ExportRecipe().variants == DEFAULT_VARIANTS
    assert set(DEFAULT_VARIANTS) < set(VARIANTS)
    assert ExportRecipe().gates.accept_slower == ()
    assert split_variant("executorch-int8") == ("executorch", "int8")


def test_every_variant_belongs_to_a_target_and_has_a_recipe_there() -> None:
    for target in TARGETS:
        precisions = {split_variant(variant)[1] for variant in VARIANTS if split_variant(variant)[0] == target}
        module = import_module(f"pocketlens.export.targets.{'coreml' if target == 'coremlstate' else target}")
        assert precisions
        assert precisions <= set(module.RECIPES)
    assert {split_variant(variant)[0] for variant in VARIANTS} == set(TARGETS)


def test_variants_are_chosen_by_target_by_name_and_by_precision() -> None:
    assert choose_variants(["all"]) == VARIANTS
    assert choose_variants(["onnx-int8", "tensorrt"]) == ("onnx-int8", "tensorrt-fp16", "tensorrt-int8")
    assert choose_variants(["onnx", "executorch"], ["int8"]) == ("onnx-int8", "executorch-int8")


@pytest.mark.parametrize(
    ("targets", "precisions", "found"),
    [
        (["onyx"], [], "onyx"),
        (["onnx"], ["int3"], "int3"),
        (["tensorrt"], ["8da4w"], "8da4w, tensorrt"),
        ([], [], "nothing"),
    ],
)
def test_names_that_fit_nothing_are_told(targets: list[str], precisions: list[str], found: str) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_variants(targets, precisions)
    assert caught.value.found == found


def test_limits_are_read_by_precision_variant_and_graph(tmp_path: Path) -> None:
    path = tmp_path / "export.toml"
    path.write_text(
        "[gates.limits.int4]\nmean_cosine = 0.9\n"
        '[gates.limits."onnx-int4/text_encoder"]\nmin_cosine = 0.8\ntoken_agreement = 0.5\n'
    )
    limits = load_recipe(path).gates.limits
    assert limits["int4"].mean_cosine == 0.9
    assert limits["int4"].min_cosine is None
    assert limits["onnx-int4/text_encoder"].token_agreement == 0.5
