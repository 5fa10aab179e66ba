"""`pocketlens export RUN` and `verify`, from the command line, on a tiny trained-looking run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pocketlens.cli import main
from pocketlens.core.bundle import load_bundle
from pocketlens.distill.data.recipe import ScenesData
from pocketlens.distill.data.sample import read_samples
from pocketlens.distill.recipe import Recipe, TeacherPaths, TrainRecipe, write_recipe
from pocketlens.distill.scenes import write_dataset
from pocketlens.export.judging import fitted_confidence

RECIPE = Recipe(
    name="tiny",
    teachers=TeacherPaths(embedder_licence="research-only"),
    data=ScenesData(train=16, val=50, test=8, train_px=64, test_px=64),
    train=TrainRecipe(steps=1),
)
EXPORT = """
calibration_samples = 8
latency_runs = 3
golden_samples = 1

[gates]
int8_min_mean_cosine = 0.5
min_speedup = 0.0

[gates.limits."onnx-int8/text_encoder"]
recall_loss = 1.0
"""


@pytest.fixture(scope="module")
def work(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WORK folder: a data set, and a run in it."""
    root = tmp_path_factory.mktemp("work")
    write_dataset(
        root / "data",
        split_sizes={"train": 16, "val": 50, "test": 8},
        size_px=dict.fromkeys(("train", "val", "test"), 64),
        seed=1,
    )
    shutil.copytree(student_folder, root / "student")
    write_recipe(root / "student" / "recipe.toml", RECIPE)
    (root / "export.toml").write_text(EXPORT, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def exported(work: Path) -> Path:
    command = ["export", work / "student", "--data", work, "--recipe", work / "export.toml", "--out", work / "bundle"]
    assert main([*map(str, command), "--target", "onnx", "--precision", "fp32,int8", "--name", "mine"]) == 0
    return work / "bundle"


def test_a_runs_bundle_carries_figures_of_the_student_each_variant_and_a_graph_with_a_limit(exported: Path) -> None:
    manifest = load_bundle(exported).manifest
    assert manifest.name == "mine"
    assert {(g.target, g.precision) for g in manifest.graphs} == {("onnx", "fp32"), ("onnx", "int8")}
    subjects = {figure.subject for figure in manifest.quality}
    assert subjects == {"student", "onnx-fp32", "onnx-int8", "onnx-int8/text_encoder"}
    own = {(figure.subject, figure.metric): figure for figure in manifest.quality}
    assert own["onnx-fp32", "r1_i2t"].value == own["student", "r1_i2t"].value
    assert own["student", "cider"].low is not None
    assert "r1_i2t" in (exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert manifest.confidence is not None
    assert manifest.confidence.fitted_on == 50  # the validation split


def test_a_confidence_is_not_fitted_on_too_few_captions(exported: Path, work: Path) -> None:
    samples = read_samples(work / "data", "val")
    assert fitted_confidence(load_bundle(exported), samples[:49], work / "data") is None


def test_commercial_refuses_a_research_only_teacher(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", work / "student", "--data", work, "--out", work / "sold", "--commercial", "--json"]
    assert main([*map(str, command), "--recipe", str(work / "export.toml"), "--target", "onnx"]) == 9
    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert error["error"] == "ExportError"
    assert "research-only" in error["found"]
    assert not (work / "sold").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["student"], "--data"),
        (["open_clip:ViT-B-32"], "--pictures"),
    ],
)
def test_what_an_export_needs_is_said(
    arguments: list[str], told: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--out", str(work / "none")]) == 2
    assert told in capsys.readouterr().err
    assert not (work / "none").exists()


def test_an_unknown_target_names_those_that_there_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", work / "student", "--data", work, "--out", work / "none", "--target", "onix", "--json"]
    assert main([*map(str, command)]) == 5
    error: dict[str, Any] = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert "onnx" in error["expected"]


def test_verify_without_probing_and_with_a_key_that_did_not_sign(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(exported), "--no-probe", "--json"]) == 0
    stages = {check["stage"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"embedding", "text_embedding", "captions", "resize"} <= stages
    assert main(["keygen", str(tmp_path / "key")]) == 0
    public = next(path for path in tmp_path.iterdir() if path.suffix == ".pub")
    capsys.readouterr()
    assert main(["verify", str(exported), "--key", str(public), "--json"]) == 4
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"] == "BundleTampered"


def test_verify_names_the_stage_of_an_empty_hand_in(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = main(["verify", str(exported), "--tensors", str(tmp_path / "none"), "--json"])
    assert ended != 0
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"].endswith("Error")
