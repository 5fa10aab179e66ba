"""The extension module: there in a development installation, right from every thread, and never needed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.compiled import COMPILED, fit_compiled
from pocketlens.core.preprocess import PreprocessSpec, fit_pixels_exact, preprocess

SPEC = PreprocessSpec(height_px=32, width_px=48)
ENTRIES = (20, 30, 8, 8, 0, 0, (0, 0, 0))  # of a picture of 20 x 30 and a result of 8 x 8

needs_module = pytest.mark.skipif(not COMPILED, reason="no extension module: no C compiler where this was installed")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_complete_installation_has_it() -> None:
    if not os.environ.get("POCKETLENS_REQUIRE_TOOLCHAINS"):
        pytest.skip("POCKETLENS_REQUIRE_TOOLCHAINS is not set: it may be missing here")
    assert COMPILED


@needs_module
def test_an_image_and_an_array_give_the_same_bits_as_the_spec() -> None:
    pixels = noise(90, 70)
    exact = fit_pixels_exact(pixels, SPEC)
    for source in (pixels, Image.fromarray(pixels), pixels[::-1][::-1], np.asfortranarray(pixels)):
        fitted = fit_compiled(source, SPEC)
        assert fitted is not None
        np.testing.assert_array_equal(fitted, exact)
        assert fitted.flags.c_contiguous
        assert fitted.flags.writeable


@needs_module
def test_threads_do_not_disturb_each_other() -> None:
    pictures = [noise(40 + number, 60 + 2 * number, number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        fitted = list(pool.map(lambda picture: fit_compiled(Image.fromarray(picture), SPEC), pictures))
    for picture, found in zip(pictures, fitted, strict=True):
        assert found is not None
        np.testing.assert_array_equal(found, fit_pixels_exact(picture, SPEC))


def test_an_image_in_several_blocks_is_left_to_pillow() -> None:
    pixels = np.tile(noise(64, 64), (36, 36, 1))  # 5.3 megapixels, 21 MB as Pillow holds them
    image = Image.fromarray(pixels)
    assert fit_compiled(image, SPEC) is None
    np.testing.assert_array_equal(preprocess(image, SPEC), fit_pixels_exact(pixels, SPEC))


def test_without_it_the_pixels_are_the_same() -> None:
    program = (
        "import sys; sys.modules['pocketlens.core._preprocess'] = None\n"
        "import numpy as np\n"
        "from pocketlens.core.compiled import COMPILED\n"
        "from pocketlens.core.preprocess import PreprocessSpec, fit_pixels\n"
        "assert not COMPILED\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)\n"
        "sys.stdout.buffer.write(fit_pixels(pixels, PreprocessSpec(height_px=32, width_px=48)).tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == fit_pixels_exact(noise(90, 70), SPEC).tobytes()


@needs_module
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((bytes(20 * 30 * 3 - 1), *ENTRIES, bytearray(192)), ValueError),
        ((bytes(20 * 30 * 3), *ENTRIES, bytearray(191)), ValueError),
        ((bytes(20 * 30 * 3), *ENTRIES, bytes(192)), TypeError),  # not to be written to
        (("text", *ENTRIES, bytearray(192)), TypeError),
        ((bytes(0), 0, *ENTRIES[1:], bytearray(192)), ValueError),
        ((bytes(20 * 30 * 3), *ENTRIES[:4], 3, *ENTRIES[5:], bytearray(192)), ValueError),
        ((Image.new("RGB", (30, 21)).__arrow_c_array__()[1], *ENTRIES, bytearray(192)), ValueError),
        ((Image.new("L", (30, 20)).__arrow_c_array__()[1], *ENTRIES, bytearray(192)), ValueError),
        ((Image.new("RGB", (30, 20)).__arrow_c_array__()[0], *ENTRIES, bytearray(192)), ValueError),
    ],
)
def test_sizes_that_do_not_fit_are_errors_not_reads_beyond(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    from pocketlens.core import _preprocess

    with pytest.raises(error):
        _preprocess.fit(*arguments)
