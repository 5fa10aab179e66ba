"""Compilers of the device kit's tests, and the harness with cases going in and results coming out."""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.preprocess import PreprocessSpec

__all__ = ["HEADERS", "SOURCES", "STRICT", "Case", "Harness", "Texts", "build", "program"]

SOURCES = Path(__file__).parent
HEADERS = (SOURCES.parents[1] / "core" / "c", SOURCES.parents[1] / "export" / "device_kit" / "c")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wconversion", "-ffp-contract=off")

FITS = ("crop", "squash", "pad")
FILTERS = ("bicubic", "bilinear")


def program(name: str) -> str:
    """Return the path of a program, or skip the test; where the tests must be complete, fail."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("POCKETLENS_REQUIRE_TOOLCHAINS"):
            pytest.fail(f"{name} is not installed and POCKETLENS_REQUIRE_TOOLCHAINS is set")
        pytest.skip(f"{name} is not installed (docs/device-kit.md names the Debian packages)")
    return found


def build(compiler: str, source: Path, out: Path, *flags: str, include: Sequence[Path] = HEADERS) -> Path:
    """Compile one C file with the strict flags and return the program; the compiler's words are in the failure."""
    strict = [flag for flag in STRICT if compiler != "g++" or not flag.startswith("-std=")]
    command = [program(compiler), *strict, *flags, *(f"-I{folder}" for folder in include), str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return out


class Case(NamedTuple):
    """One picture for the harness: stored pixels (H, W, 3 or 4), `pl_format` and EXIF orientation.

    `padding` bytes stand between rows; they may be read and change nothing.
    """

    pixels: NDArray[np.uint8]
    spec: PreprocessSpec
    orientation: int = 1
    format: int = 0
    padding: int = 0

    def packed(self) -> Iterator[bytes]:
        """Yield the case in the harness's format."""
        height, width, channels = self.pixels.shape
        stride = width * channels + self.padding
        spec = self.spec
        yield struct.pack(
            "=17i",
            width, height, stride, self.format, self.orientation,
            spec.height_px, spec.width_px, FITS.index(spec.fit), FILTERS.index(spec.filter),
            *spec.matte, *spec.pad_colour, spec.max_pixels, spec.max_aspect,
        )  # fmt: skip
        rows = np.full((height, stride), 0xA5, np.uint8)
        rows[:, : width * channels] = self.pixels.reshape(height, -1)
        yield rows.tobytes()


class Texts(NamedTuple):
    """What the harness made of one text: the status, all ids, and the row for the text encoder."""

    status: int
    ids: list[int]
    row: list[int]


class Harness:
    """The compiled harness, run directly or through an emulator."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command = list(command)
        self._folder = folder

    def pictures(self, cases: Iterable[Case]) -> list[NDArray[np.uint8] | int]:
        """Return for each case the pixels, or the status when it was refused."""
        path = self._folder / "cases"
        specs = []
        with path.open("wb") as stream:
            for case in cases:
                specs.append(case.spec)
                stream.writelines(case.packed())
        answers = memoryview(self.run("pictures", path))
        results: list[NDArray[np.uint8] | int] = []
        for spec in specs:
            (status,) = struct.unpack_from("=i", answers)
            answers = answers[4:]
            size = 0 if status else spec.height_px * spec.width_px * 3
            taken = np.frombuffer(answers[:size], np.uint8)
            results.append(status or taken.reshape(spec.height_px, spec.width_px, 3))
            answers = answers[size:]
        assert not answers
        return results

    def texts(self, tokenizer_bin: Path, texts: Sequence[bytes], *, text_length: int) -> list[Texts]:
        """Return what becomes of each text, given as bytes that need not be UTF-8."""
        path = self._folder / "cases"
        path.write_bytes(b"".join(struct.pack("=i", len(text)) + text for text in texts))
        numbers = np.frombuffer(self.run("texts", tokenizer_bin, path), np.int32).tolist()
        results = []
        at = 0
        for _ in texts:
            status = numbers[at]
            count = 0 if status else numbers[at + 1]
            row = at + 2 + count
            results.append(Texts(status, [] if status else numbers[at + 2 : row], numbers[row : row + text_length]))
            at = at + 1 if status else row + text_length
        assert at == len(numbers)
        return results

    def decode(self, tokenizer_bin: Path, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids."""
        path = self._folder / "cases"
        path.write_bytes(b"".join(np.array([len(row), *row], np.int32).tobytes() for row in rows))
        answers = self.run("decode", tokenizer_bin, path)
        results = []
        for _ in rows:
            status, length = struct.unpack_from("=2i", answers)
            assert status == 0
            results.append(answers[8 : 8 + length].decode())
            answers = answers[8 + length :]
        assert not answers
        return results

    def lines(self) -> list[str]:
        """Return what a program without arguments prints."""
        return subprocess.run(self._command, capture_output=True, text=True, check=True).stdout.split()

    def run(self, mode: str, *paths: Path) -> bytes:
        """Return what the harness writes; a crash or a sanitizer's report fails the test."""
        out = self._folder / "results"
        command = [*self._command, mode, *map(str, paths), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return out.read_bytes()
