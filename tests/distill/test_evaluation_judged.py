import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.evaluation import Judged, JudgedLens, JudgedStudent, JudgedTeachers, evaluate, token_identity
from pocketlens.distill.scenes import SceneSample, read_split, write_dataset
from pocketlens.distill.students import StudentConfig
from pocketlens.distill.students.student import Student
from pocketlens.distill.teachers import TeacherCaption
from pocketlens.runtime import Lens, load

EMBEDDING = {f"r{k}_{way}" for k in (1, 5, 10) for way in ("i2t", "t2i")}
CAPTION = {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "caption_length"} | {
    "hallucination",
    "hallucination_captions",
    "missed",
}


class ColourTeacher:
    """A true, if simple, dual encoder: mean colours against the colours that a text names."""

    id, licence, dim = "colours", "Apache-2.0", 3
    preprocess = PreprocessSpec(height_px=8, width_px=8)

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.shape[1:] == (8, 8, 3)
        means = pixels.mean(axis=(1, 2)).astype(np.float32)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[1 + text.count(c) for c in ("red", "green", "blue")] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class BrightnessCaptioner:
    id, licence = "brightness", "Apache-2.0"
    preprocess = PreprocessSpec(height_px=4, width_px=6, fit="squash")

    def caption(self, pixels: NDArray[np.uint8]) -> list[TeacherCaption]:
        assert pixels.shape[1:] == (4, 6, 3)
        return [TeacherCaption(f"a ball of level {int(picture.mean())}", -1.0) for picture in pixels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, split_sizes={"test": 6}, size_px={"test": 32}, seed=7, workers=1)
    return root


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[SceneSample]:
    return read_split(folder, "test")


@pytest.fixture(scope="module")
def paths(folder: Path, samples: list[SceneSample]) -> list[Path]:
    return [folder / sample.image for sample in samples]


@pytest.fixture(scope="module")
def tokenizer(samples: list[SceneSample]) -> Tokenizer:
    texts = (text for sample in samples for text in sample.captions)
    return Tokenizer(train_bpe(texts, vocab_size=320), text_length=32)


@pytest.fixture(scope="module")
def student(tokenizer: Tokenizer) -> Student:
    torch.manual_seed(0)
    config = StudentConfig(
        backbone="mobilenetv4_conv_small_035",
        output_stride=16,
        image_px=32,
        embed_dim=16,
        width=32,
        heads=2,
        text_layers=1,
        decoder_layers=1,
        caption_tokens=12,
        vocab_size=tokenizer.vocab_size,
    )
    return Student(config).eval()


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Lens:
    # The runtime's tests own the tiny bundle of real ONNX graphs.
    source = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_bundle", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return load(module.build_bundle(tmp_path_factory.mktemp("bundles") / "tiny"), precision="fp32", threads=1)


@pytest.fixture(scope="module", params=["teacher", "student", "lens"])
def judged(request: pytest.FixtureRequest) -> Judged:
    if request.param == "teacher":
        return JudgedTeachers(ColourTeacher(), BrightnessCaptioner())
    if request.param == "student":
        return JudgedStudent(request.getfixturevalue("student"), request.getfixturevalue("tokenizer"))
    return JudgedLens(request.getfixturevalue("lens"), name="onnx-fp32")


def test_every_system_answers_for_every_picture_and_text(judged: Judged, paths: list[Path]) -> None:
    images, texts = judged.embed_images(paths), judged.embed_texts(["a red ball", "a tree", "it is night"])
    assert images.shape == (6, texts.shape[1])
    assert texts.shape[0] == 3
    for vectors in (images, texts):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert len(judged.captions(paths)) == 6


def test_the_order_of_pictures_is_kept(judged: Judged, paths: list[Path]) -> None:
    turned = judged.embed_images(paths[::-1])[::-1]
    np.testing.assert_allclose(turned, judged.embed_images(paths), atol=1e-5)
    assert judged.captions(paths[::-1])[::-1] == judged.captions(paths)


def test_no_pictures_and_no_texts_give_empty_answers(judged: Judged) -> None:
    dim = judged.embed_texts(["a"]).shape[1]
    assert judged.embed_images([]).shape == (0, dim)
    assert judged.embed_texts([]).shape == (0, dim)
    assert judged.captions([]) == []


def test_a_broken_picture_is_named(judged: Judged, paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(PictureError, match=r"broken\.jpg"):
        judged.embed_images([*paths, broken])
    with pytest.raises(PictureError, match=r"broken\.jpg"):
        judged.captions([*paths, broken])


def test_every_system_can_be_evaluated(judged: Judged, samples: list[SceneSample], folder: Path) -> None:
    result = evaluate(judged, samples, folder, seed=3)
    assert set(result.figures) >= EMBEDDING | CAPTION
    assert result.subject == judged.name
    assert result.captions == tuple(c.text for c in judged.captions([folder / s.image for s in samples]))
    assert all(np.isfinite([f.value, f.low, f.high]).all() and f.low <= f.high for f in result.figures.values())
    assert len(result.token_ids) == (0 if judged.name == "teacher" else 6)
    if result.token_ids:
        assert token_identity(result, result) == 1.0


def test_more_pictures_than_a_batch_are_all_answered(paths: list[Path]) -> None:
    judged = JudgedTeachers(ColourTeacher(), BrightnessCaptioner())
    many = paths * 11
    np.testing.assert_array_equal(judged.embed_images(many), np.tile(judged.embed_images(paths), (11, 1)))
    assert judged.captions(many) == judged.captions(paths) * 11
    assert judged.embed_texts(["red", "blue"] * 150).shape == (300, 3)


def test_the_student_is_judged_as_its_own_modules_answer(
    student: Student, tokenizer: Tokenizer, paths: list[Path]
) -> None:
    pixels = np.stack([preprocess(path, PreprocessSpec(height_px=32, width_px=32)) for path in paths])
    with torch.no_grad():
        embeddings, tokens = student.image_encoder(torch.from_numpy(pixels))
    judged = JudgedStudent(student, tokenizer)
    np.testing.assert_allclose(judged.embed_images(paths), embeddings.numpy(), atol=1e-6)
    ids = student.greedy(tokens, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    assert [list(caption.token_ids) for caption in judged.captions(paths)] == ids
    assert [caption.text for caption in judged.captions(paths)] == [tokenizer.decode(row) for row in ids]


@pytest.mark.parametrize("training", [True, False])
def test_judging_leaves_a_student_as_it_was(
    student: Student, tokenizer: Tokenizer, paths: list[Path], training: bool
) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    judged = JudgedStudent(student, tokenizer)
    expected = judged.embed_images(paths)
    student.train(training)
    try:
        np.testing.assert_array_equal(judged.embed_images(paths), expected)
        assert student.training is training
    finally:
        student.eval()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_lens_is_judged_as_it_answers(lens: Lens, paths: list[Path]) -> None:
    judged = JudgedLens(lens, name="onnx-fp32", batch_size=4)
    assert [c.token_ids for c in judged.captions(paths)] == [lens.caption(path).token_ids for path in paths]
    np.testing.assert_allclose(judged.embed_images(paths), [lens.embed_image(path) for path in paths], atol=1e-6)


def test_teachers_without_a_captioner_give_embedding_figures_only(samples: list[SceneSample], folder: Path) -> None:
    judged = JudgedTeachers(ColourTeacher(), name="colours")
    result = evaluate(judged, samples, folder, seed=3)
    assert set(result.figures) >= EMBEDDING
    assert not CAPTION & set(result.figures)
    assert result.captions == ()
    assert result.token_ids == ()
    with pytest.raises(ValueError, match="captions_pictures"):
        judged.captions([])
