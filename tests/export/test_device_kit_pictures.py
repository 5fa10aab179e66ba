"""The device kit's preprocessing in C against `pocketlens.core`, under sanitizers and on aarch64."""

import itertools
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.resample import tap_weights
from tests.device_kit.cases import expected_pixels, large_pictures, one_pixel_pictures, pictures
from tests.device_kit.toolchain import FILTERS, SOURCES, Case, Harness, build, program

SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCE = SOURCES / "harness.c"


def all_equal(harness: Harness, cases: Sequence[Case]) -> None:
    for case, found in zip(cases, harness.pictures(cases), strict=True):
        assert not isinstance(found, int), f"{case.spec} {case.pixels.shape}: refused with status {found}"
        np.testing.assert_array_equal(found, expected_pixels(case), err_msg=f"{case.spec} {case.pixels.shape}")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    folder = tmp_path_factory.mktemp("sanitized")
    return Harness([str(build("gcc", SOURCE, folder / "harness", *SANITIZED))], folder)


@pytest.mark.parametrize("flags", [SANITIZED, ("-O3",)], ids=["sanitized", "O3"])
def test_plain_c_gives_the_same_bits(flags: tuple[str, ...], tmp_path: Path) -> None:
    built = build("gcc", SOURCE, tmp_path / "harness", *flags, "-DPOCKETLENS_PLAIN_C")
    all_equal(Harness([str(built)], tmp_path), pictures()[::3])


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    folder = tmp_path_factory.mktemp("aarch64")
    emulator = program("qemu-aarch64-static")
    return Harness(
        [emulator, str(build("aarch64-linux-gnu-gcc", SOURCE, folder / "harness", "-O3", "-static"))], folder
    )


def test_the_cases_are_as_many_and_as_different_as_promised() -> None:
    cases = [*pictures(), *one_pixel_pictures()]
    assert len(cases) >= 500
    combinations = {(c.orientation, c.spec.fit, c.spec.filter, c.format) for c in cases}
    assert len([c for c in combinations if 1 <= c[0] <= 8]) == 8 * 3 * 2 * 4
    assert any(c.pixels.shape[0] == 100 * c.pixels.shape[1] for c in cases)
    assert any(c.pixels.shape[1] == 100 * c.pixels.shape[0] for c in cases)


def test_every_bit_equals_python_under_sanitizers(sanitized: Harness) -> None:
    all_equal(sanitized, pictures())


def test_one_pixel_equals_python_under_sanitizers(sanitized: Harness) -> None:
    all_equal(sanitized, one_pixel_pictures())


def test_twelve_megapixels_equal_python_under_sanitizers(sanitized: Harness) -> None:
    all_equal(sanitized, large_pictures())


@pytest.mark.parametrize(
    "flags",
    [("-O0",), ("-O3",), ("-O3", "-march=native"), pytest.param(("-Os",), marks=pytest.mark.slow)],
    ids=["O0", "O3", "native", "Os"],
)
def test_no_optimisation_changes_a_bit(flags: tuple[str, ...], tmp_path: Path) -> None:
    all_equal(Harness([str(build("gcc", SOURCE, tmp_path / "harness", *flags))], tmp_path), pictures()[::3])


@pytest.mark.slow
def test_clang_gives_the_same_bits(tmp_path: Path) -> None:
    all_equal(Harness([str(build("clang", SOURCE, tmp_path / "harness", "-O2"))], tmp_path), pictures()[::3])


def test_every_bit_is_equal_on_aarch64(aarch64: Harness) -> None:
    all_equal(aarch64, [*pictures(), *one_pixel_pictures()])


@pytest.mark.slow
def test_twelve_megapixels_are_equal_on_aarch64(aarch64: Harness) -> None:
    all_equal(aarch64, large_pictures())


def test_every_weight_equals_python(tmp_path: Path) -> None:
    side = 36
    built = build("gcc", SOURCES / "weights.c", tmp_path / "weights", "-O2")
    done = subprocess.run([str(built), str(side)], capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.int32)
    for name in FILTERS:
        for before, after in itertools.permutations(range(1, side + 1), 2):
            first, weights = tap_weights(before, after, name)  # type: ignore[arg-type]
            for start, row in zip(first, weights, strict=True):
                count = int(found[1])
                assert found[0] == start
                np.testing.assert_array_equal(found[2 : 2 + count], row[:count])
                assert not row[count:].any()
                found = found[2 + count :]
    assert not found.size


def test_fused_multiply_add_changes_no_bit_on_aarch64(tmp_path: Path) -> None:
    # aarch64 has the instruction in its base set, and GNU C may use it.
    emulator = program("qemu-aarch64-static")
    flags = ("-O3", "-static", "-std=gnu99", "-ffp-contract=fast")
    built = build("aarch64-linux-gnu-gcc", SOURCE, tmp_path / "harness", *flags)
    all_equal(Harness([emulator, str(built)], tmp_path), pictures()[::3])


@pytest.mark.parametrize(
    ("height", "width", "limits", "status", "kind"),
    [
        (1, 101, {}, 2, "bad_shape"),
        (101, 1, {}, 2, "bad_shape"),
        (1, 100, {}, 0, None),
        (11, 10, {"max_pixels": 109}, 3, "too_many_pixels"),
        (11, 10, {"max_pixels": 110}, 0, None),
        (1, 200, {"max_pixels": 199}, 3, "too_many_pixels"),
    ],
)
def test_refuses_what_python_refuses(
    sanitized: Harness, height: int, width: int, limits: dict[str, int], status: int, kind: str | None
) -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, **limits)  # type: ignore[arg-type]
    case = Case(np.zeros((height, width, 3), np.uint8), spec)
    found = sanitized.pictures([case])[0]
    if kind is None:
        np.testing.assert_array_equal(found, expected_pixels(case))
        return
    assert found == status
    with pytest.raises(PictureError) as caught:
        expected_pixels(case)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [(0, 0, 2), (1, 0, 2), (2, 3, 1), (3, 4, 1), (5, 0, 1), (6, 4097, 1), (7, 3, 1), (8, 2, 1), (15, 0, 1), (16, 0, 1)],
)
def test_a_value_out_of_range_is_refused(
    sanitized: Harness, tmp_path: Path, field: int, value: int, status: int
) -> None:
    case = Case(np.zeros((4, 5, 3), np.uint8), PreprocessSpec(height_px=8, width_px=8))
    head, body = case.packed()
    numbers = list(struct.unpack("=17i", head))
    numbers[field] = value
    size = numbers[1] * numbers[2]
    path = tmp_path / "case"
    path.write_bytes(struct.pack("=17i", *numbers) + body[:size])
    assert sanitized.run("pictures", path) == struct.pack("=i", status)


def test_the_stated_bound_holds_for_twelve_megapixels(tmp_path: Path) -> None:
    # docs/device-kit.md and the header: less than half a mebibyte.
    source = tmp_path / "bound.c"
    source.write_text(
        "#define POCKETLENS_PREPROCESS_IMPLEMENTATION\n"
        '#include "pocketlens_preprocess.h"\n'
        "#include <stdio.h>\n"
        "int main(void) {\n"
        "    static const uint8_t pixel[1];\n"
        "    const pl_spec spec = {256, 256, PL_CROP, PL_BICUBIC, {0, 0, 0}, {0, 0, 0}, 64000000, 100};\n"
        "    int32_t turn;\n"
        "    for (turn = 1; turn <= 8; ++turn) {\n"
        "        const pl_picture picture = {pixel, 4000, 3000, 12000, PL_RGB, turn};\n"
        '        printf("%lu\\n", (unsigned long)pl_preprocess_workspace(&picture, &spec));\n'
        "    }\n"
        "    return 0;\n"
        "}\n"
    )
    bounds = Harness([str(build("gcc", source, tmp_path / "bound"))], tmp_path).lines()
    assert len(bounds) == 8
    assert all(0 < int(bound) < 2**19 for bound in bounds)
