"""Golden vectors: every stage matters in some case, they fit their size, and hashes hold."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from pocketlens.core.bundle import Bundle
from pocketlens.core.errors import BundleSchemaError
from pocketlens.core.golden import read_golden
from pocketlens.core.preprocess import PreprocessSpec, fit_pixels, preprocess
from pocketlens.export.golden import draw_golden_pictures, write_tensors
from pocketlens.export.golden_cases import write_vectors
from pocketlens.export.golden_steps import case_spec, results_of, steps_of, turned
from pocketlens.export.golden_vectors import STAGES, VECTORS_FILE, Tolerance, Vectors, array_sha256, read_vectors

SPEC = PreprocessSpec(height_px=256, width_px=256)


@pytest.fixture(scope="module")
def golden_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden folder for a target of 256 px, the size of the larger phone models."""
    root = tmp_path_factory.mktemp("golden256")
    pictures = draw_golden_pictures(root, 4, seed=0)
    pixels = np.stack([preprocess(path, SPEC) for path in pictures])
    write_tensors(root, pixels)
    write_vectors(root, SPEC, pictures=[path.name for path in pictures], pixels=pixels)
    return root


def vectors_of(root: Path) -> Vectors:
    vectors = read_vectors(root)
    assert vectors is not None
    return vectors


def test_the_folder_stays_below_400_kb_at_256_px(golden_root: Path) -> None:
    assert sum(path.stat().st_size for path in golden_root.rglob("*") if path.is_file()) < 400_000


def test_every_preprocessing_stage_has_a_case_of_its_own(golden_root: Path) -> None:
    stages = {case.stage for case in vectors_of(golden_root).cases}
    assert stages == set(STAGES[: STAGES.index("normalise")])


def test_a_case_needs_only_stages_of_earlier_cases(golden_root: Path) -> None:
    seen = set()
    for case in vectors_of(golden_root).cases:
        assert set(case.needs) <= seen, case.name
        seen.add(case.stage)


def test_hashes_are_those_of_this_machine(golden_root: Path) -> None:
    for case in vectors_of(golden_root).cases:
        assert results_of(steps_of(golden_root, case, SPEC)) == case.results, case.name


def test_tensors_of_decoded_cases_are_what_pillow_makes(golden_root: Path) -> None:
    for case in vectors_of(golden_root).cases:
        if not case.is_file:
            steps = steps_of(golden_root, case, SPEC)
            np.testing.assert_array_equal(steps["tensor"], fit_pixels(steps["pixels"], case_spec(case, SPEC)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_pillow_does(orientation: int) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    names = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
    names |= {7: "TRANSVERSE", 8: "ROTATE_90"}
    image = Image.fromarray(stored)
    if orientation > 1:
        image = image.transpose(Image.Transpose[names[orientation]])
    np.testing.assert_array_equal(turned(stored, orientation), np.asarray(image))


def test_decoders_are_recorded(golden_root: Path) -> None:
    decoders = vectors_of(golden_root).decoders
    assert set(decoders) >= {"pillow", "littlecms2"}
    assert any(name.startswith("libjpeg") for name in decoders)


def test_a_large_target_keeps_its_first_tensor_as_a_picture(golden_root: Path) -> None:
    assert not (golden_root / "golden" / "pixels.npy").exists()
    with Image.open(golden_root / "golden" / "tensor-00.png") as image:
        assert array_sha256(np.asarray(image)) == vectors_of(golden_root).tensors[0]


def test_small_targets_keep_all_tensors(bundle: Bundle) -> None:
    golden = read_golden(bundle.root)
    assert len(golden.pixels) == len(golden.golden.pictures)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 99}, "version 99"), ({"cases": 3}, "cases"), ({"extra": 1}, "extra")],
)
def test_malformed_vectors_are_refused(
    golden_root: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (tmp_path / "golden").mkdir()
    content = msgspec.json.decode((golden_root / VECTORS_FILE).read_bytes())
    (tmp_path / VECTORS_FILE).write_bytes(msgspec.json.encode(content | change))
    with pytest.raises(BundleSchemaError, match=words):
        read_vectors(tmp_path)


def test_an_input_outside_the_bundle_is_refused(golden_root: Path, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    content = (golden_root / VECTORS_FILE).read_bytes().replace(b"golden/cases/plain.npy", b"../plain.npy")
    (tmp_path / VECTORS_FILE).write_bytes(content)
    with pytest.raises(BundleSchemaError, match=r"\.\./plain"):
        read_vectors(tmp_path)


def test_a_bundle_from_before_has_none(tmp_path: Path) -> None:
    assert read_vectors(tmp_path) is None


def test_the_tolerance_counts_levels_in_range() -> None:
    expected = np.zeros((1, 4, 1), np.uint8)
    found = np.array([[[0], [2], [3], [0]]], np.uint8)
    assert Tolerance(levels=2).met(found, expected) == 0.75
    assert Tolerance(levels=2).met(found[0], expected) == 0.0
