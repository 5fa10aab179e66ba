"""The device kit's resize against Pillow's: 12 megapixels, one thread, the same pixels in and out.

Run: python -m benchmarks.device_kit [--compiler gcc --flags "-O3"] [--rounds 15]

Both start from decoded RGB in memory. Each round times every case once with Pillow and once with the kit, in turns,
by the CPU time of the thread (what another process takes is not counted); the ratio is that of the medians. Pillow's
resize is the call that a user would write, one `Image.resize` to the size that the spec asks for. The kit does the
whole step: placing, resizing, cutting. Its pixels are compared with `pocketlens.core.preprocess` first.
"""

import argparse
import ctypes
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import PIL
from PIL import Image

from pocketlens.core.preprocess import PreprocessSpec, fit_pixels, place

HEADERS: Final = Path(__file__).parents[1] / "core" / "c"
SIDES_PX: Final = (4000, 3000)
FITS: Final = ("crop", "squash", "pad")
FILTERS: Final = ("bicubic", "bilinear")
CASES: Final = (
    PreprocessSpec(height_px=256, width_px=256),
    PreprocessSpec(height_px=224, width_px=224, filter="bilinear"),
    PreprocessSpec(height_px=256, width_px=256, fit="squash"),
    PreprocessSpec(height_px=336, width_px=336, fit="pad"),
    PreprocessSpec(height_px=1024, width_px=1024, fit="squash"),
)


class CPicture(ctypes.Structure):
    """`pl_picture`."""

    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("orientation", ctypes.c_int32),
    ]


class CSpec(ctypes.Structure):
    """`pl_spec`."""

    _fields_ = [
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("fit", ctypes.c_int),
        ("filter", ctypes.c_int),
        ("matte", ctypes.c_uint8 * 3),
        ("pad_colour", ctypes.c_uint8 * 3),
        ("max_pixels", ctypes.c_int32),
        ("max_aspect", ctypes.c_int32),
    ]


class Kit:
    """The header as a shared library, with one picture."""

    def __init__(self, library: Path, pixels: np.ndarray, orientation: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.pl_preprocess_workspace.restype = ctypes.c_size_t
        height, width, channels = pixels.shape
        self._pixels = pixels
        self._picture = CPicture(pixels.ctypes.data, width, height, width * channels, 0, orientation)

    def workspace_bytes(self, spec: PreprocessSpec) -> int:
        """Return what the header asks for."""
        return int(self._library.pl_preprocess_workspace(ctypes.byref(self._picture), ctypes.byref(_c_spec(spec))))

    def prepared(self, spec: PreprocessSpec) -> tuple[Callable[[], object], np.ndarray]:
        """Return a call that does the work, and the array that it fills."""
        c_spec = _c_spec(spec)
        size = self.workspace_bytes(spec)
        workspace = np.zeros(size, np.uint8)
        out = np.zeros((spec.height_px, spec.width_px, 3), np.uint8)

        def work() -> None:
            status = self._library.pl_preprocess(
                ctypes.byref(self._picture),
                ctypes.byref(c_spec),
                ctypes.c_void_p(workspace.ctypes.data),
                ctypes.c_size_t(size),
                ctypes.c_void_p(out.ctypes.data),
            )
            if status != 0:
                raise RuntimeError(f"pl_preprocess returned {status}")

        return work, out


def _c_spec(spec: PreprocessSpec) -> CSpec:
    return CSpec(
        spec.height_px,
        spec.width_px,
        FITS.index(spec.fit),
        FILTERS.index(spec.filter),
        spec.matte,
        spec.pad_colour,
        spec.max_pixels,
        spec.max_aspect,
    )


def build(compiler: str, flags: list[str], folder: Path) -> Path:
    """Compile the header into a shared library."""
    source = folder / "kit.c"
    source.write_text('#define POCKETLENS_PREPROCESS_IMPLEMENTATION\n#include "pocketlens_preprocess.h"\n')
    library = folder / "kit.so"
    command = [compiler, "-std=c99", "-ffp-contract=off", *flags, "-fPIC", "-shared", "-I", str(HEADERS)]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library


def milliseconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return 1000 * (time.thread_time() - began)


def main() -> None:
    """Print one line a case: medians in milliseconds, their ratio, the workspace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="gcc")
    parser.add_argument("--flags", default="-O3")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    width, height = SIDES_PX
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory() as folder:
        library = build(options.compiler, options.flags.split(), Path(folder))
        kit = Kit(library, pixels, 1)
        # A portrait photograph: stored lying, to be turned by 90 degrees.
        turned = Kit(library, pixels, 6)
        print(f"{platform.machine()}, Pillow {PIL.__version__}, {options.compiler} {options.flags}, {width} x {height}")
        print(f"{'case':<26}{'Pillow ms':>10}{'kit ms':>9}{'ratio':>8}{'turned ms':>11}{'workspace KiB':>15}")
        for spec in CASES:
            placement = place(height, width, spec)
            size = (placement.columns, placement.rows)
            resampling = Image.Resampling[spec.filter.upper()]
            work, out = kit.prepared(spec)
            work_turned, out_turned = turned.prepared(spec)
            work()
            work_turned()
            np.testing.assert_array_equal(out, fit_pixels(pixels, spec))
            np.testing.assert_array_equal(out_turned, fit_pixels(np.rot90(pixels, -1), spec))
            times: list[list[float]] = [[], [], []]
            for _ in range(options.rounds):
                times[0].append(milliseconds(lambda: image.resize(size, resampling)))  # noqa: B023
                times[1].append(milliseconds(work))
                times[2].append(milliseconds(work_turned))
            pillow, ours, ours_turned = map(statistics.median, times)
            name = f"{spec.filter} {spec.fit} {spec.width_px}"
            kib = kit.workspace_bytes(spec) / 1024
            print(f"{name:<26}{pillow:>10.1f}{ours:>9.1f}{ours / pillow:>8.2f}{ours_turned:>11.1f}{kib:>15.0f}")


if __name__ == "__main__":
    main()
