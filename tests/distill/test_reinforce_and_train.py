"""Teachers in their true formats -> shards -> a trained student, on pictures small enough for a test."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.errors import DataError, TeacherError, TrainingError
from pocketlens.core.preprocess import preprocess
from pocketlens.distill import augment
from pocketlens.distill.objective import Look, Objective
from pocketlens.distill.pipeline import Workspace, open_teachers, prepare_data, reinforce_data, train_student
from pocketlens.distill.recipe import Recipe, read_recipe, write_recipe
from pocketlens.distill.reinforced import read_reinforced
from pocketlens.distill.students import config as students
from pocketlens.distill.students.student import load_student
from tests.distill.tiny import CONFIG, write_captioner, write_embedder


def _silent(step: str, done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("teachers")
    students.PRESETS["tiny"] = CONFIG
    text = f"""
name = "test"
threads = 1
seed = 5
[teachers]
embedder = "{write_embedder(root / "embedder")}"
captioner = "{write_captioner(root / "captioner")}"
[data]
source = "scenes"
train = 12
val = 1
test = 2
train_px = 32
test_px = 32
[reinforce]
views = 2
shard = 5
[student]
preset = "tiny"
[train]
steps = 4
batch = 4
checkpoint_every = 2
"""
    path = root / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


@pytest.fixture(scope="module")
def work(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    space = Workspace(tmp_path_factory.mktemp("work"))
    single = msgspec.structs.replace(recipe, threads=1)
    prepare_data(single, space, _silent)
    return space


@pytest.fixture(scope="module")
def shards(recipe: Recipe, work: Workspace) -> list[Path]:
    return reinforce_data(recipe, work, _silent)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_student(run)[0].state_dict()


def test_shards_hold_what_the_teachers_say(recipe: Recipe, work: Workspace, shards: list[Path]) -> None:
    from pocketlens.distill.scenes import read_split

    data, samples, teachers = read_reinforced(shards), read_split(work.data, "train"), open_teachers(recipe)
    assert len(shards) == 3
    assert (len(data), data.views, data.dim) == (12, 2, 20)
    assert data.text_starts.tolist() == list(range(0, 73, 6))
    assert all((data.logprobs(row) <= 0).all() for row in range(12))
    texts = teachers.embedder.embed_texts([*samples[7].captions, *data.captions(7)])
    assert np.allclose(data.texts(np.arange(42, 48)), texts, atol=2e-3)
    pixels = np.stack([preprocess(work.data / sample.image, teachers.embedder.preprocess) for sample in samples[:]])
    rows, views = np.array([11, 0, 6]), np.array([1, 0, 1])
    seen = teachers.embedder.embed_images(augment.apply(pixels[rows], data.params(rows, views)))
    assert np.allclose(data.images(rows, views), seen, atol=2e-3)


def test_finished_shards_are_kept_and_a_missing_one_is_made_again_the_same(
    recipe: Recipe, work: Workspace, shards: list[Path]
) -> None:
    before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in shards]
    shards[1].unlink()
    assert reinforce_data(recipe, work, _silent) == shards
    for path, changed, data in before:
        assert path.read_bytes() == data
        assert (path.stat().st_mtime_ns == changed) == (path != shards[1])


def test_a_damaged_shard_is_named(shards: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "shard.safetensors"
    broken.write_bytes(shards[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"shard\.safetensors"):
        read_reinforced([broken])


def test_training_lowers_the_loss_and_leaves_a_student(
    recipe: Recipe, work: Workspace, shards: list[Path], tmp_path: Path
) -> None:
    longer = msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, steps=30))
    space = Workspace(tmp_path)
    (tmp_path / "data").symlink_to(work.data)
    train_student(longer, space, shards, _silent)
    rows = list(csv.DictReader((space.student / "metrics.csv").read_text().splitlines()))
    losses = [float(row["loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(30))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert read_recipe(space.student / "recipe.toml") == longer
    assert load_student(space.student)[0].config == CONFIG


_SCRIPT = """
import sys
from pathlib import Path
from tests.distill.tiny import CONFIG
from pocketlens.distill.students import config as students
students.PRESETS["tiny"] = CONFIG
from pocketlens.distill.pipeline import Workspace, reinforce_data, train_student
from pocketlens.distill.recipe import read_recipe
recipe, work = read_recipe(Path(sys.argv[1])), Workspace(Path(sys.argv[2]))
silent = lambda *_: None
train_student(recipe, work, reinforce_data(recipe, work, silent), lambda *at: print(at[1], flush=True))
"""


def test_a_killed_training_goes_on_to_the_same_weights(
    recipe: Recipe, work: Workspace, shards: list[Path], tmp_path: Path
) -> None:
    longer = msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, steps=12))
    write_recipe(tmp_path / "recipe.toml", longer)
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(work.data)
        (tmp_path / name / "reinforced").symlink_to(work.reinforced)
    train_student(longer, Workspace(tmp_path / "unbroken"), shards, _silent)
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "recipe.toml"), str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen = int(line) if line.strip().isdigit() else seen
        if seen >= 5:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed" / "student" / "student.safetensors").exists()
    train_student(longer, Workspace(tmp_path / "killed"), shards, _silent)
    unbroken, resumed = (_weights(tmp_path / name / "student") for name in ("unbroken", "killed"))
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    recipe: Recipe, work: Workspace, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Workspace(tmp_path)
    (tmp_path / "data").symlink_to(work.data)
    true_look, calls = Objective.look, 0

    def poisoned(self: Objective, *arguments: Any) -> Look:
        nonlocal calls
        calls += 1
        look = true_look(self, *arguments)
        terms = {**look.terms, "feature": look.terms["feature"] * float("nan")}
        return look._replace(terms=terms) if calls == 4 else look

    monkeypatch.setattr(Objective, "look", poisoned)
    with pytest.raises(TrainingError, match=r"step 3.*feature nan"):
        train_student(recipe, space, shards, _silent)
    assert torch.load(space.student / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_folder_of_another_recipe_is_refused(
    recipe: Recipe, work: Workspace, shards: list[Path], tmp_path: Path
) -> None:
    space = Workspace(tmp_path)
    (tmp_path / "data").symlink_to(work.data)
    train_student(recipe, space, shards, _silent)
    other = msgspec.structs.replace(recipe, seed=6)
    with pytest.raises(TrainingError, match="another recipe"):
        train_student(other, space, shards, _silent)


def test_two_runs_in_one_folder_are_refused(
    recipe: Recipe, work: Workspace, shards: list[Path], tmp_path: Path
) -> None:
    from pocketlens.distill.checkpoint import only_run

    space = Workspace(tmp_path)
    (tmp_path / "data").symlink_to(work.data)
    with only_run(space.student), pytest.raises(TrainingError, match="another process"):
        train_student(recipe, space, shards, _silent)


@pytest.mark.parametrize("role", ["embedder", "captioner"])
@pytest.mark.parametrize("damage", ["missing", "empty", "weights"])
def test_an_unreadable_teacher_folder_is_one_typed_error(
    recipe: Recipe, tmp_path: Path, role: str, damage: str
) -> None:
    import shutil

    folder = tmp_path / "teacher"
    if damage == "empty":
        folder.mkdir()
    elif damage == "weights":
        shutil.copytree(getattr(recipe.teachers, role), folder)
        next(folder.glob("*.safetensors")).write_bytes(b"not weights")
    paths = msgspec.structs.replace(recipe.teachers, **{role: str(folder)})
    started = time.monotonic()
    with pytest.raises(TeacherError, match="teacher"):
        open_teachers(msgspec.structs.replace(recipe, teachers=paths))
    assert time.monotonic() - started < 60  # no hub was waited for
