"""The command line in this process, on a tiny real bundle, and files that are broken in every way."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pocketlens.cli import main
from tests.runtime.conftest import build_bundle


class Ended(NamedTuple):
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()

    @property
    def records(self) -> list[Any]:
        """Lines of stdout, each of which must be JSON."""
        return [json.loads(line) for line in self.lines]

    @property
    def told(self) -> list[str]:
        """Lines of stderr without progress bars."""
        return [line for line in self.err.splitlines() if " ETA " not in line]

    def refuses(self, error: str, code: int) -> str:
        """Check that this is one typed error and nothing else, and return its sentence."""
        assert self.code == code, self.err
        assert self.out == ""
        assert len(self.told) == 1, self.err
        name, sentence = self.told[0].split(" ", 1)
        assert name == error, self.err
        expected, found = sentence.index(": expected "), sentence.index("; found ")
        remedy = sentence[found:].partition(". ")[2]
        assert 0 < expected < found
        assert remedy.rstrip().endswith("."), f"no remedy: {sentence}"
        return sentence


Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POCKETLENS_")]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("NO_COLOR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command line and return how it ended."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real bundle that no test changes."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "damaged"))


def png(seed: int, height: int = 12, width: int = 12) -> bytes:
    """Return a PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with twenty good pictures."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(20):
        (root / f"{number:02}.png").write_bytes(png(number))
    return root


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def black_png(width: int, height: int) -> bytes:
    """Return a complete PNG of one bit a pixel: next to no bytes, however large it unfolds."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(1, 64, 64))).save(buffer, "JPEG")
    data = buffer.getvalue()
    return data[: len(data) // 2]


BAD_FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "truncated.jpg": ("corrupt", _truncated_jpeg),
    "bomb.png": ("too_many_pixels", lambda: black_png(16_000, 16_000)),
    "text.jpg": ("unknown_type", lambda: b"Dear diary, this is no picture.\n" * 20),
    "empty.png": ("empty", lambda: b""),
    "nothing.png": ("bad_shape", lambda: black_png(0, 0)),
    "strip.png": ("bad_shape", lambda: black_png(1, 20_000)),
    "strip-lying.png": ("bad_shape", lambda: black_png(20_000, 1)),
}
"""Files that are no good pictures: name -> (kind of the refusal, content)."""


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Bad pictures on disk, with a directory and a missing file: path -> kind of the refusal."""
    root = tmp_path_factory.mktemp("bad")
    kinds = {}
    for name, (kind, content) in BAD_FILES.items():
        (root / name).write_bytes(content())
        kinds[root / name] = kind
    (root / "directory.jpg").mkdir()
    return kinds | {root / "directory.jpg": "not_a_file", root / "missing.jpg": "missing"}
