"""A student that starts from a backbone's weights, or from a larger student."""

from pathlib import Path

import msgspec
import pytest
import timm
import torch
from safetensors.torch import save_file

from pocketlens.core.errors import DataError, RecipeError
from pocketlens.distill.students.inheritance import inherit, load_backbone
from pocketlens.distill.students.student import Student
from tests.distill.tiny import CONFIG, noise

LARGE = msgspec.structs.replace(CONFIG, width=48, heads=3, text_layers=3, decoder_layers=4)


@pytest.fixture(scope="module")
def larger() -> Student:
    torch.manual_seed(1)
    return Student(LARGE).eval()


def test_a_student_of_the_same_sizes_inherits_everything(larger: Student) -> None:
    torch.manual_seed(2)
    twin = Student(LARGE).eval()
    assert inherit(twin, larger) > 0.9  # running statistics of fresh batch norms are equal already
    pixels, ids = torch.from_numpy(noise(2, 32)), torch.randint(4, 200, (2, 9), dtype=torch.int32)
    with torch.no_grad():
        for part in ("image_encoder", "text_encoder"):
            argument = pixels if part == "image_encoder" else ids
            own, theirs = getattr(twin, part)(argument), getattr(larger, part)(argument)
            torch.testing.assert_close(own, theirs)


def test_a_smaller_one_keeps_the_first_and_the_last_layer_and_the_important_channels(larger: Student) -> None:
    torch.manual_seed(2)
    marked = Student(LARGE).eval()
    with torch.no_grad():
        for tower in (marked.text_encoder, marked.caption_decoder):
            tower.tokens.weight[:, ::3] *= 1e-4  # every third channel says nothing
            for number, block in enumerate(tower.blocks):
                block.attention.output.weight[::3] *= 1e-4
                block.feed[2].weight[::3] *= 1e-4
                block.feed_norm.weight.fill_(float(number))
    student = Student(CONFIG).eval()
    assert inherit(student, marked) > 0.5
    kept = torch.tensor([c for c in range(48) if c % 3])
    assert torch.equal(student.text_encoder.tokens.weight, marked.text_encoder.tokens.weight[:, kept])
    assert [b.feed_norm.weight[0].item() for b in student.caption_decoder.blocks] == [0.0, 3.0]
    assert student.text_encoder.blocks[0].feed_norm.weight[0].item() == 0.0


@pytest.mark.parametrize("change", [{"text_layers": 4}, {"width": 96, "heads": 3}, {"width": 48, "heads": 6}])
def test_a_student_that_is_not_larger_is_refused(larger: Student, change: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"student\.start"):
        inherit(Student(msgspec.structs.replace(LARGE, **change)), larger)


def test_backbone_weights_of_a_classifier_fit_half_precision_too(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model(CONFIG.backbone, num_classes=7)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    student = Student(CONFIG)
    assert load_backbone(student, tmp_path / "weights.safetensors") == 1.0
    name = next(iter(dict(student.image_encoder.backbone.named_parameters())))
    assert torch.equal(student.image_encoder.backbone.state_dict()[name], weights[name].float())


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name, message in (("other", "of the values"), ("broken", "safetensors"), ("gone", "safetensors")):
        with pytest.raises(DataError, match=message):
            load_backbone(Student(CONFIG), tmp_path / f"{name}.safetensors")


def test_same_padding_is_the_backbones_of_tensorflow() -> None:
    config = msgspec.structs.replace(CONFIG, backbone="mobilenetv2_035", output_stride=None)
    padded = Student(msgspec.structs.replace(config, backbone_padding="same")).eval()
    plain = Student(config).eval()
    plain.load_state_dict(padded.state_dict())
    pixels = torch.from_numpy(noise(1, 32))
    with torch.no_grad():
        assert not torch.allclose(padded.image_encoder(pixels)[0], plain.image_encoder(pixels)[0], atol=1e-3)
