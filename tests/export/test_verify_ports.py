"""Ports with one planted bug each: caught, and named by stage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, load_bundle, write_bundle
from pocketlens.core.errors import BundleIncomplete, DataError
from pocketlens.core.golden import read_golden
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.student import Student
from pocketlens.export.diagnosis import Diagnosis, PortInput, diagnose_port, diagnose_tensors
from pocketlens.export.golden_cases import write_vectors
from pocketlens.export.golden_steps import steps_of
from pocketlens.export.golden_vectors import VECTORS_FILE, read_vectors
from pocketlens.export.verify import verify_bundle
from tests.export.planted_bugs import BUGS, ported


def embedding(student: Student, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = student.image_encoder(torch.from_numpy(levels))[0].numpy()
    return found


@pytest.fixture(scope="module")
def root(bundle: Bundle, student: tuple[Student, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with golden vectors."""
    if (bundle.root / VECTORS_FILE).exists():
        return bundle.root
    golden = read_golden(bundle.root)
    folder = tmp_path_factory.mktemp("vectors")
    staged = folder / "staged"
    shutil.copytree(bundle.root, staged)
    write_vectors(
        staged,
        bundle.manifest.preprocess,
        pictures=golden.golden.pictures,
        pixels=golden.pixels,
        embed=lambda levels: embedding(student[0], levels),
        mean=student[0].config.mean,
        std=student[0].config.std,
    )
    return write_bundle(folder / "bundle", bundle.manifest, staged).root


def test_verify_gives_every_stage_a_check(root: Path) -> None:
    report = verify_bundle(root)
    assert report.passed
    stages = {check.stage for check in report.checks if check.subject == "preprocess"}
    assert stages >= {"layout", "orientation", "bits", "alpha", "geometry", "resize", "decode", "profile", "cmyk"}


def test_a_right_port_has_no_findings(root: Path) -> None:
    diagnosis = diagnose_port(root, ported())
    assert diagnosis.findings == ()
    assert diagnosis.passed
    assert diagnosis.machine_differs == ()
    assert diagnosis.passed_cases == diagnosis.handed_in > 60


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named_by_stage(root: Path, bug: str) -> None:
    stage, words, _ = BUGS[bug]
    diagnosis = diagnose_port(root, ported(bug))
    assert not diagnosis.passed
    assert [finding.stage for finding in diagnosis.findings] == [stage]
    finding = diagnosis.findings[0]
    if words:
        assert words in finding.cause
        assert finding.certainty != "stage only"
    else:
        assert finding.certainty == "stage only"


def test_two_bugs_are_both_named(root: Path) -> None:
    port = ported("alpha dropped")
    BUGS["6 and 8 swapped"][2](port)
    assert [finding.stage for finding in diagnose_port(root, port).findings] == ["orientation", "alpha"]


# A port that knows no spec but the bundle's takes only the cases made with it.
@pytest.mark.parametrize("bug", ["BGR", "squash for crop", "nearest", "bilinear for bicubic", "orientation skipped"])
def test_a_port_of_the_bundles_own_spec_alone_is_judged_too(root: Path, bug: str) -> None:
    port = ported(bug)
    diagnosis = diagnose_port(root, lambda given: port(given) if given.case.fit is None else None)
    assert diagnosis.findings[0].stage == BUGS[bug][0]
    assert BUGS[bug][1] in diagnosis.findings[0].cause


def handed_in(root: Path, folder: Path, port: Callable[[PortInput], NDArray[np.uint8]]) -> None:
    folder.mkdir()

    def save(given: PortInput) -> None:
        np.save(folder / f"{given.case.name}.npy", port(given))

    diagnose_port(root, save)


def test_a_folder_of_tensors_gives_the_same_diagnosis(root: Path, tmp_path: Path) -> None:
    handed_in(root, tmp_path / "answers", ported("BGR"))
    assert diagnose_tensors(root, tmp_path / "answers") == diagnose_port(root, ported("BGR"))


def test_raw_bytes_will_do(root: Path, tmp_path: Path) -> None:
    def save(given: PortInput) -> None:
        (tmp_path / f"{given.case.name}.rgb").write_bytes(ported()(given).tobytes())

    diagnose_port(root, save)
    assert diagnose_tensors(root, tmp_path).passed


def test_an_intermediate_result_names_its_stage(root: Path, tmp_path: Path) -> None:
    vectors = read_vectors(root)
    assert vectors is not None
    case = next(case for case in vectors.cases if case.name == "crop")
    steps = steps_of(root, case, load_bundle(root).manifest.preprocess)
    np.save(tmp_path / "crop.npy", steps["tensor"])
    np.save(tmp_path / "crop.pixels.npy", steps["pixels"])
    np.save(tmp_path / "crop.wide.npy", steps["wide"][:, ::-1])
    diagnosis = diagnose_tensors(root, tmp_path)
    assert [(f.stage, f.cases) for f in diagnosis.findings] == [("resize", ("crop",))]
    assert "wide" in diagnosis.findings[0].cause


def test_untested_stages_are_listed(root: Path, tmp_path: Path) -> None:
    port = ported()
    diagnosis = diagnose_port(root, lambda given: port(given) if given.case.name == "plain" else None)
    assert diagnosis.passed
    assert "layout" not in diagnosis.untested
    assert {"orientation", "resize", "weights"} <= set(diagnosis.untested)


def test_an_empty_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of them"):
        diagnose_tensors(root, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("plain.npy", b"no array"), ("plain.rgb", b"123"), ("captions.json", b"{")]
)
def test_a_malformed_answer_is_refused(root: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        diagnose_tensors(root, tmp_path)


def test_a_bundle_without_vectors_still_verifies_but_judges_no_port(root: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(root, staged)
    (staged / VECTORS_FILE).unlink()
    old = write_bundle(tmp_path / "old", load_bundle(root).manifest, staged).root
    assert verify_bundle(old).passed
    with pytest.raises(BundleIncomplete, match="vectors"):
        diagnose_port(old, ported())


# --- level 3 -----------------------------------------------------------------------------------


def through(student: Student, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the tower gives when its backbone sees `seen (N, H, W, 3)`, whatever the normalisation should be."""
    tower = student.image_encoder
    with torch.no_grad():
        features = tower.backbone(torch.from_numpy(seen.astype(np.float32)).permute(0, 3, 1, 2))[-1]
        found: NDArray[np.float32] = tower.heads(features)[0].numpy()
    return found


NORMALISATIONS: dict[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "ImageNet": ("ImageNet", lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    "CLIP": (
        "CLIP",
        lambda p: (p / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711],
    ),
    "minus one to one": ("-1..1", lambda p: p / 127.5 - 1),
    "zero to one": ("0..1", lambda p: p / 255),
    "no division": ("no division", lambda p: p / 255 - 0.5),
    "no mean": ("no mean subtracted", lambda p: p / 255 / 0.25),
    "twice": ("twice", lambda p: ((p / 255 - 0.5) / 0.25 - 0.5) / 0.25),
    "divided by 255 twice": ("divides them again", lambda p: (p / 255 / 255 - 0.5) / 0.25),
    "raw levels": ("0..255", lambda p: p),
    "variance": ("variance", lambda p: (p / 255 - 0.5) / 0.0625),
}


def judged(root: Path, folder: Path, **answers: NDArray[np.float32]) -> Diagnosis:
    for name, array in answers.items():
        np.save(folder / f"{name}.npy", array)
    return diagnose_tensors(root, folder)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_wrong_normalisation_is_told_from_other_weights(
    root: Path, student: tuple[Student, Tokenizer], tmp_path: Path, name: str
) -> None:
    words, normalise = NORMALISATIONS[name]
    found = through(student[0], normalise(read_golden(root).pixels.astype(np.float64)).astype(np.float32))
    diagnosis = judged(root, tmp_path, embeddings=found)
    assert [finding.stage for finding in diagnosis.findings] == ["normalise"]
    assert words in diagnosis.findings[0].cause
    assert diagnosis.findings[0].certainty == "very likely"


def test_bgr_before_the_graph_is_named_layout(root: Path, student: tuple[Student, Tokenizer], tmp_path: Path) -> None:
    pixels = read_golden(root).pixels[..., ::-1].astype(np.float32)
    diagnosis = judged(root, tmp_path, embeddings=embedding(student[0], pixels.copy()))
    assert [(f.stage, f.cause) for f in diagnosis.findings] == [("layout", "channels in the order B, G, R")]


def test_other_weights_are_named_as_such(root: Path, student: tuple[Student, Tokenizer], tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = Student(student[0].config).eval()
    pixels = read_golden(root).pixels.astype(np.float32)
    diagnosis = judged(root, tmp_path, embeddings=embedding(other, pixels))
    assert [finding.stage for finding in diagnosis.findings] == ["weights"]


def test_right_embeddings_pass(root: Path, tmp_path: Path) -> None:
    golden = read_golden(root)
    diagnosis = judged(root, tmp_path, embeddings=golden.embeddings, text_embeddings=golden.text_embeddings)
    assert diagnosis.passed


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        (lambda e: e[::-1], "embedding", "another order"),
        (lambda e: e * 3, "embedding", "length 1"),
        (lambda e: e[:, :-1], "embedding", "shape"),
        (lambda e: np.where(e == e.max(), np.nan, e), "embedding", "not finite"),
        (lambda e: e[:, ::-1], "embedding", "permuted"),
    ],
)
def test_a_spoilt_embedding_is_named(
    root: Path, tmp_path: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], stage: str, words: str
) -> None:
    diagnosis = judged(root, tmp_path, embeddings=change(read_golden(root).embeddings))
    assert [finding.stage for finding in diagnosis.findings] == [stage]
    assert words in diagnosis.findings[0].cause


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: ids[1:], "start|first token"),
        (lambda ids: (1, *ids), "start token is included"),
        (lambda ids: (*ids, 5), "does not stop"),
        (lambda ids: ids[:-1], "end token"),
        (lambda ids: (*ids[:2], ids[2] + 1, *ids[3:]), "after 2 tokens"),
    ],
)
def test_a_wrong_caption_is_named(
    root: Path, tmp_path: Path, change: Callable[[tuple[int, ...]], tuple[int, ...]], words: str
) -> None:
    captions = [change(ids) for ids in read_golden(root).golden.caption_ids]
    (tmp_path / "captions.json").write_bytes(msgspec.json.encode(captions))
    diagnosis = diagnose_tensors(root, tmp_path)
    assert [finding.stage for finding in diagnosis.findings] == ["caption"]
    assert any(word in diagnosis.findings[0].cause for word in words.split("|"))


def test_wrong_token_ids_are_named_text(root: Path, tmp_path: Path) -> None:
    ids = [row[1:] for row in read_golden(root).golden.text_ids]
    (tmp_path / "text_ids.json").write_bytes(msgspec.json.encode(ids))
    diagnosis = diagnose_tensors(root, tmp_path)
    assert [(f.stage, f.cause) for f in diagnosis.findings] == [("text", "the start token is missing")]
