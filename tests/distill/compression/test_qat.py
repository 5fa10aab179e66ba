"""Training with simulated int8: what it trains is what the export for ExecuTorch writes."""

import copy

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.errors import ExportError, TrainingError
from pocketlens.distill.compression.capture import capture
from pocketlens.distill.compression.qat import train_quantized
from pocketlens.distill.compression.quantized_student import QuantizedStudent
from pocketlens.distill.recipe import QatRecipe, Recipe
from pocketlens.distill.students.student import Student, load_student
from pocketlens.distill.train import train
from pocketlens.export.graphs import student_graphs
from pocketlens.export.quiet import quiet
from pocketlens.export.targets.executorch_static import quantize_pt2e
from tests.distill.compression.tiny_run import DIM, TinyRun


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def student(tiny: TinyRun) -> Student:
    return train(tiny.recipe(12), tiny.data, tiny.tokenizer, teacher_dim=DIM, run=tiny.root / "student")


def _recipe(tiny: TinyRun, steps: int, moving: float = 0.5) -> Recipe:
    return msgspec.structs.replace(tiny.recipe(12), qat=QatRecipe(steps=steps, learning_rate=1e-3, moving=moving))


@pytest.fixture(scope="module")
def trained(tiny: TinyRun, student: Student) -> Student:
    folder = tiny.root / "quantized"
    train_quantized(_recipe(tiny, 4), tiny.data, tiny.tokenizer, student, teacher_dim=DIM, run=folder)
    (folder / "tokenizer.json").write_bytes((tiny.root / "tokenizer.json").read_bytes())
    return load_student(folder)[0]


@torch.no_grad()
def test_without_rounding_it_answers_as_the_student(tiny: TinyRun, student: Student) -> None:
    simulated = QuantizedStudent(copy.deepcopy(student))
    for graph in simulated.graphs().values():
        for _, quantizer in graph.quantizers():
            quantizer.disable_fake_quant()
    pixels, ids = torch.from_numpy(tiny.pixels[:3]), tiny.data.batch(0, 8).ids[:3, :7]
    for ours, own in zip(simulated.image_encoder(pixels), student.image_encoder(pixels), strict=True):
        assert torch.allclose(ours, own, atol=1e-5)
    assert torch.allclose(simulated.text_encoder(ids), student.text_encoder(ids), atol=1e-5)
    visual = student.image_encoder(pixels)[1]
    assert torch.allclose(simulated.caption_decoder(visual, ids), student.caption_decoder(visual, ids), atol=1e-4)
    written = copy.deepcopy(student)
    simulated.write_back(written)
    assert torch.allclose(written.image_encoder(pixels)[0], student.image_encoder(pixels)[0], atol=1e-5)
    folded = dict(capture(written.image_encoder, (pixels[:1],)).program.module().named_parameters())
    traced = dict(simulated.image_encoder.traced.graph.named_parameters())
    names = [name for name in folded if name.startswith("folded_")]
    assert names
    assert all(torch.equal(folded[name], traced[name]) for name in names)


@torch.no_grad()
def test_the_export_quantizes_with_the_trained_ranges(tiny: TinyRun, student: Student, trained: Student) -> None:
    assert not torch.equal(trained.text_encoder.tokens.weight, student.text_encoder.tokens.weight)
    graph = student_graphs(trained)["image_encoder"]
    assert graph.ranges.keys() == trained.ranges["image_encoder"].keys()
    example = graph.example_row
    module = capture(graph.module, example).program.module()
    # a black picture as the only feed: had it been asked, calibration would have found other ranges
    with quiet():
        quantized = quantize_pt2e(module, graph, [{"pixels": np.zeros_like(tiny.pixels[:1])}])
    scales = {
        float(node.args[1])
        for node in quantized.graph.nodes
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
    }
    spans = {float(high.clamp(min=0) - low.clamp(max=0)) for low, high in graph.ranges.values()}
    expected = np.array(sorted(max(span / 255, 2**-12) for span in spans))
    assert scales
    assert all(np.isclose(expected, scale, rtol=1e-5).any() for scale in scales)
    # what was simulated in training is what the emitted graph answers
    simulated = QuantizedStudent(copy.deepcopy(trained))
    for role, one in simulated.graphs().items():
        for name, quantizer in one.quantizers():
            observer = quantizer.activation_post_process
            if quantizer.is_per_channel:
                continue
            low, high = trained.ranges[role][name]
            observer.min_val.copy_(low)
            observer.max_val.copy_(high)
    simulated.image_encoder(torch.from_numpy(tiny.pixels[:2]))  # the weights' ranges
    for role, one in simulated.graphs().items():
        for name, quantizer in one.quantizers():
            if not quantizer.is_per_channel:
                low, high = trained.ranges[role][name]
                quantizer.activation_post_process.min_val.copy_(low)
                quantizer.activation_post_process.max_val.copy_(high)
    simulated.follow(0.0)
    for _, quantizer in simulated.image_encoder.traced.quantizers():
        scale, zero_point = quantizer.calculate_qparams()
        quantizer.scale.copy_(scale)
        quantizer.zero_point.copy_(zero_point)
    for row in range(4):
        pixels = torch.from_numpy(tiny.pixels[row : row + 1])
        found, expected_vector = quantized(pixels)[0], simulated.image_encoder(pixels)[0]
        assert torch.nn.functional.cosine_similarity(found, expected_vector).item() > 0.9999


def test_a_range_that_is_missing_stops_the_export(tiny: TinyRun, trained: Student) -> None:
    graph = student_graphs(trained)["caption_prefill"]
    names = list(graph.ranges)
    object.__setattr__(graph, "ranges", {name: graph.ranges[name] for name in names[1:]})
    module = capture(graph.module, graph.example_row).program.module()
    feed = {"visual_tokens": graph.example_row[0].numpy()}
    with quiet(), pytest.raises(ExportError, match=names[0]):
        quantize_pt2e(module, graph, [feed])


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights_and_ranges(tiny: TinyRun, student: Student, trained: Student) -> None:
    from pocketlens.distill.train import Progress

    class Killed(Exception):
        pass

    def kill(at: Progress) -> None:
        if at.step == 3:  # behind the checkpoint of step 2, where the ranges began to stand still
            raise Killed

    folder = tiny.root / "resumed"
    arguments = (_recipe(tiny, 4), tiny.data, tiny.tokenizer, student)
    with pytest.raises(Killed):
        train_quantized(*arguments, teacher_dim=DIM, run=folder, progress=kill)
    again = train_quantized(*arguments, teacher_dim=DIM, run=folder)
    own, other = again.state_dict(), trained.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert all(
        torch.equal(again.ranges[role][name], value)
        for role, ranges in trained.ranges.items()
        for name, value in ranges.items()
    )


@pytest.mark.slow
def test_another_recipe_is_refused(tiny: TinyRun, student: Student, trained: Student) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        train_quantized(
            _recipe(tiny, 5), tiny.data, tiny.tokenizer, student, teacher_dim=DIM, run=tiny.root / "quantized"
        )
