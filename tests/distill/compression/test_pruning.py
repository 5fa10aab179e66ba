"""Structured pruning: what goes, what is left, how it loads, and the training after it."""

import copy
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.errors import DataError, RecipeError
from pocketlens.distill.compression.cutting import MULTIPLE, cut
from pocketlens.distill.compression.pruning import cut_by_loss, train_pruned
from pocketlens.distill.compression.quantized_student import QuantizedStudent
from pocketlens.distill.recipe import PruningRecipe, Recipe
from pocketlens.distill.students.blocks import Block
from pocketlens.distill.students.config import StudentConfig, Width
from pocketlens.distill.students.inheritance import inherit
from pocketlens.distill.students.student import Student, load_student, save_student
from pocketlens.distill.train import Progress
from pocketlens.export.pipeline import export_student
from pocketlens.export.recipe import ExportRecipe, Gates
from pocketlens.export.reference import Samples
from pocketlens.runtime import load
from tests.distill.compression.tiny_run import CONFIG, DIM, TinyRun

SETTINGS = PruningRecipe(steps=4, channels=0.4, units=0.5, learning_rate=1e-3)


def _recipe(tiny: TinyRun, settings: PruningRecipe = SETTINGS) -> Recipe:
    return msgspec.structs.replace(tiny.recipe(4), pruning=settings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def student(tiny: TinyRun) -> Student:
    torch.manual_seed(0)
    whole = Student(tiny.config)
    with torch.no_grad():
        for _ in range(3):  # batch norms that have seen pictures
            whole.train().image_encoder(torch.from_numpy(tiny.pixels[:16]))
    return whole.eval()


@pytest.fixture(scope="module")
def narrow(student: Student) -> Student:
    return cut(student, channels=0.4, units=0.5, importance="magnitude")


@pytest.fixture(scope="module")
def trained(tiny: TinyRun, student: Student) -> Student:
    folder = tiny.root / "pruned"
    result = train_pruned(_recipe(tiny), tiny.data, tiny.tokenizer, student, teacher_dim=DIM, run=folder)
    (folder / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    return result


def _weights(student: Student) -> int:
    return sum(weight.numel() for weight in student.parameters())


def test_widths_left_are_multiples_and_the_outputs_keep_theirs(
    tiny: TinyRun, student: Student, narrow: Student
) -> None:
    assert _weights(narrow) < 0.85 * _weights(student)
    whole = dict(student.named_modules())
    for width in narrow.config.pruned:
        before = whole[width.layer]
        widest = max(getattr(before, name, 0) for name in ("out_channels", "out_features", "num_features"))
        assert width.outputs % MULTIPLE == 0 or width.outputs == widest
        assert width.outputs >= widest / 4
    pixels = torch.from_numpy(tiny.pixels[:2])
    for ours, own in zip(narrow.image_encoder.look(pixels), student.image_encoder.look(pixels), strict=True):
        assert ours.shape == own.shape
        assert torch.isfinite(ours).all()


def test_a_share_of_nothing_changes_nothing(tiny: TinyRun, student: Student) -> None:
    same = cut(student, channels=0.0, units=0.0, importance="magnitude")
    assert same.config == student.config
    pixels = torch.from_numpy(tiny.pixels[:2])
    assert torch.equal(same.image_encoder(pixels)[0], student.image_encoder(pixels)[0])


@torch.no_grad()
def test_what_does_nothing_goes_first_and_costs_nothing(tiny: TinyRun, student: Student) -> None:
    idle = copy.deepcopy(student)
    for block in (module for module in idle.modules() if isinstance(module, Block)):
        first, last = block.feed[0], block.feed[2]
        for layer in (first, last):
            assert isinstance(layer, torch.nn.Linear)
        first.weight[::2] = 0.0
        first.bias[::2] = 0.0
        last.weight[:, ::2] = 0.0
    less = cut(idle, channels=0.0, units=0.5, importance="magnitude")
    widths = {width.layer: width for width in less.config.pruned}
    assert widths["text_encoder.blocks.0.feed.0"] == Width("text_encoder.blocks.0.feed.0", 32, 64)
    ids = tiny.data.batch(0, 8).ids[:3, :7]
    assert torch.allclose(less.text_encoder(ids), idle.text_encoder(ids), atol=1e-6)
    assert _weights(less) < _weights(idle)


def test_taylor_keeps_what_the_loss_needs(tiny: TinyRun, student: Student) -> None:
    """Weights of a channel that are large and that nothing listens to count for nothing."""
    loud = copy.deepcopy(student)
    feed = loud.text_encoder.blocks[0].feed  # type: ignore[union-attr,index]
    first, last = feed[0], feed[2]
    with torch.no_grad():
        first.weight[:64] *= 20.0
        first.bias[:64] = 0.0
        last.weight[:, :64] = 0.0
    settings = msgspec.structs.replace(SETTINGS, channels=0.0, units=0.25)
    found = {}
    for importance in ("taylor", "magnitude"):
        plan = msgspec.structs.replace(settings, importance=importance)
        less = cut_by_loss(
            _recipe(tiny, plan), tiny.data, loud, teacher_dim=DIM, heads={}, pad_id=tiny.tokenizer.pad_id
        )
        kept = less.text_encoder.blocks[0].feed[0].weight  # type: ignore[union-attr,index]
        found[importance] = int((kept.abs().amax(dim=1) > 1.5).sum())
    assert found["magnitude"] == 64
    assert found["taylor"] < 64


@torch.no_grad()
def test_it_loads_again_to_the_bit_without_the_library(
    tiny: TinyRun, narrow: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_student(tmp_path, narrow)
    (tmp_path / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # an import of it fails
    again, _ = load_student(tmp_path)
    assert again.config == narrow.config
    assert all(map(torch.equal, again.state_dict().values(), narrow.state_dict().values()))
    pixels = torch.from_numpy(tiny.pixels[:2])
    assert all(map(torch.equal, again.image_encoder(pixels), narrow.image_encoder(pixels)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one._replace(layer="image_encoder.nowhere"), "a convolution, a linear layer or a norm"),
        (lambda one: one._replace(outputs=one.outputs + 1), "layers as wide as what they are given"),
        (lambda one: one._replace(outputs=10_000), "1 to"),
        (lambda one: one._replace(inputs=0), "1 to"),
    ],
)
def test_widths_that_are_not_the_weights_are_refused(
    tiny: TinyRun, narrow: Student, tmp_path: Path, change: object, told: str
) -> None:
    save_student(tmp_path, narrow)
    (tmp_path / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    config = msgspec.json.decode((tmp_path / "student.json").read_bytes(), type=StudentConfig)
    at = next(i for i, one in enumerate(config.pruned) if one.layer == "caption_decoder.blocks.0.feed.0")
    assert callable(change)
    widths = (*config.pruned[:at], change(config.pruned[at]), *config.pruned[at + 1 :])
    changed = msgspec.structs.replace(config, pruned=widths)
    (tmp_path / "student.json").write_bytes(msgspec.json.encode(changed))
    with pytest.raises(DataError, match=told):
        load_student(tmp_path)


def test_weights_of_the_whole_student_are_refused_where_widths_are_pruned(
    tiny: TinyRun, student: Student, narrow: Student, tmp_path: Path
) -> None:
    save_student(tmp_path, student)
    (tmp_path / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    (tmp_path / "student.json").write_bytes(msgspec.json.encode(narrow.config))
    with pytest.raises(DataError, match="size mismatch"):
        load_student(tmp_path)


@pytest.mark.slow
def test_a_pruned_student_can_be_trained_for_int8_and_be_pruned_again(tiny: TinyRun, narrow: Student) -> None:
    simulated = QuantizedStudent(copy.deepcopy(narrow))
    written = copy.deepcopy(narrow)
    simulated.write_back(written)
    assert written.ranges["image_encoder"]
    less = cut(narrow, channels=0.2, units=0.2, importance="magnitude")
    assert _weights(less) < _weights(narrow)
    assert len({width.layer for width in less.config.pruned}) == len(less.config.pruned)


def test_a_backbone_that_cannot_be_cut_is_an_error_of_the_recipe() -> None:
    config = msgspec.structs.replace(CONFIG, backbone="levit_128s", feature_map=-1, image_px=224)
    with pytest.raises(RecipeError, match="levit_128s"):
        cut(Student(config).eval(), channels=0.3, units=0.0, importance="magnitude")


def test_a_pruned_student_with_too_little_to_give_is_not_inherited_from(student: Student, narrow: Student) -> None:
    with pytest.raises(RecipeError, match="hidden units"):
        inherit(copy.deepcopy(student), narrow)


@pytest.mark.slow
def test_a_pruned_student_is_exported_with_its_answers(tiny: TinyRun, trained: Student, tmp_path: Path) -> None:
    pictures = [tiny.root / "data" / sample.image for sample in tiny.samples[:4]]
    samples = Samples(pictures, [sample.captions[0] for sample in tiny.samples[:4]])
    gates = Gates(int8_min_mean_cosine=0.9, min_speedup=0.0)  # what fp32 has to reach is the default: 0.9999
    bundle = export_student(
        tiny.root / "pruned",
        tmp_path / "bundle",
        recipe=ExportRecipe(
            variants=("onnx-fp32", "onnx-int8", "executorch-fp32"),
            calibration_samples=4,
            latency_runs=1,
            mixed_precision="off",
            gates=gates,
        ),
        test=samples,
        calibration=samples,
        name="pruned",
        licence="Apache-2.0",
    )
    with torch.no_grad():
        expected = trained.image_encoder(torch.from_numpy(tiny.pixels[:4]))[0].numpy()
    for engine in ("onnxruntime", "executorch"):
        lens = load(bundle.root, engine=engine, precision="fp32", threads=1)
        found = np.stack([lens.embed_image(picture) for picture in pictures])
        assert np.allclose(found, expected, atol=1e-4)
        lens.close()


def test_it_learns_after_the_cut_and_is_saved(tiny: TinyRun, trained: Student) -> None:
    folder = tiny.root / "pruned"
    loaded, _ = load_student(folder)
    assert loaded.config.pruned == trained.config.pruned != ()
    assert all(map(torch.equal, loaded.state_dict().values(), trained.state_dict().values()))
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + SETTINGS.steps


def test_a_killed_run_ends_with_the_same_student(tiny: TinyRun, student: Student, trained: Student) -> None:
    class Killed(Exception):
        pass

    def kill(at: Progress) -> None:
        if at.step == 3:  # behind the checkpoint of step 2
            raise Killed

    arguments = (_recipe(tiny), tiny.data, tiny.tokenizer, student)
    with pytest.raises(Killed):
        train_pruned(*arguments, teacher_dim=DIM, run=tiny.root / "killed", progress=kill)
    again = train_pruned(*arguments, teacher_dim=DIM, run=tiny.root / "killed")
    assert again.config == trained.config
    assert all(map(torch.equal, again.state_dict().values(), trained.state_dict().values()))
