"""A tiny student with real quantization statistics, real pictures, and one real export of it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

from pocketlens.core.bundle import Bundle, ConfidenceSpec, Quality, TeacherRecord
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.distill.scenes.render import render
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.student import Student, load_student, preprocess_spec, save_student
from pocketlens.export import Evaluation, ExportRecipe, Gates, Samples, export_student
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.reference import Feed, Reference, calibration_feeds, load_pixels, reference_answers

CONFIG = StudentConfig(
    backbone="test_resnet",
    image_px=64,
    visual_grid=2,
    embed_dim=16,
    width=32,
    heads=2,
    text_layers=1,
    decoder_layers=2,
    text_length=16,
    caption_tokens=6,
    vocab_size=300,
)

ROLES = ("image_encoder", "text_encoder", "caption_prefill", "caption_decode")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Samples]:
    """Pictures and captions to compare on, and others to calibrate with."""
    folder = tmp_path_factory.mktemp("pictures")
    scenes = [sample_scene(seed, split="train") for seed in range(20)]
    paths = [folder / f"{index}.png" for index in range(len(scenes))]
    for path, scene in zip(paths, scenes, strict=True):
        Image.fromarray(render(scene, size_px=64)).save(path)
    texts = [captions(scene)[0] for scene in scenes]
    return Samples(paths[:8], texts[:8]), Samples(paths[8:], texts[8:])


@pytest.fixture(scope="session")
def student_folder(samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student whose batch norms have seen pictures."""
    folder = tmp_path_factory.mktemp("run") / "student"
    backend = train_bpe([*samples[0].captions, *samples[1].captions], vocab_size=CONFIG.vocab_size)
    config = msgspec.structs.replace(CONFIG, vocab_size=backend.get_vocab_size())
    torch.manual_seed(0)
    student = Student(config).train()
    pixels = torch.from_numpy(load_pixels(samples[1].pictures, preprocess_spec(config)))
    with torch.no_grad():
        for _ in range(20):
            student.image_encoder(pixels)
    save_student(folder, student)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def student(student_folder: Path) -> tuple[Student, Tokenizer]:
    return load_student(student_folder)


@pytest.fixture(scope="session")
def graphs(student: tuple[Student, Tokenizer]) -> dict[str, Graph]:
    return dict(student_graphs(student[0]))


@pytest.fixture(scope="session")
def reference(student: tuple[Student, Tokenizer], samples: tuple[Samples, Samples]) -> Reference:
    model, tokenizer = student
    pixels = load_pixels(samples[0].pictures, preprocess_spec(model.config))
    return reference_answers(model, tokenizer, pixels, tokenizer.encode_batch(samples[0].captions))


@pytest.fixture(scope="session")
def feeds(student: tuple[Student, Tokenizer], samples: tuple[Samples, Samples]) -> dict[str, list[Feed]]:
    model, tokenizer = student
    pixels = load_pixels(samples[1].pictures, preprocess_spec(model.config))
    ids = tokenizer.encode_batch(samples[1].captions)
    return dict(calibration_feeds(model, tokenizer, pixels, ids, seed=0))


RECIPE = ExportRecipe(
    variants=("onnx-fp32", "onnx-int8"),
    calibration_samples=12,
    latency_runs=30,
    golden_samples=2,
    # A million is out of reach, so that every int8 graph depends on being accepted.
    gates=Gates(int8_min_mean_cosine=0.9, min_speedup=1e6, accept_slower=ROLES, max_metric_loss={"r1_i2t": 0.02}),
)


@pytest.fixture(scope="session")
def bundle(student_folder: Path, samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny student as an ONNX bundle, made by the whole pipeline. Read-only: tests copy it."""

    def evaluate(candidate: Bundle) -> Evaluation:
        # What matters here is that figures arrive, not what they are.
        figures = {"student": 0.5, "onnx-fp32": 0.5, "onnx-int8": 0.49}
        assert candidate.variants("image_encoder") == (("onnx", "fp32"), ("onnx", "int8"))
        quality = tuple(Quality(subject=s, metric="r1_i2t", value=v, samples=8) for s, v in figures.items())
        return Evaluation(quality=quality, confidence=ConfidenceSpec(bias=0.5, weights={}, fitted_on=8))

    test, calibration = samples
    return export_student(
        student_folder,
        tmp_path_factory.mktemp("out") / "tiny",
        recipe=RECIPE,
        test=test,
        calibration=calibration,
        name="tiny",
        licence="Apache-2.0",
        teachers=[TeacherRecord(id="someone", licence="MIT", task="embedding")],
        provenance={"data": "scenes"},
        evaluate=evaluate,
    )
