"""libFuzzer on the device kit. A minute each by hand or at night; a few seconds by default."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.device_kit.cases import flat_file, foreign_tokenizer, strings, tokenizer_files
from tests.device_kit.toolchain import SOURCES, build

FLAGS = ("-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")


def fuzz(name: str, folder: Path, limit: str, environment: Mapping[str, str] | None = None) -> str:
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    built = build("clang", SOURCES / f"{name}.c", folder / name, *FLAGS)
    command = [str(built), limit, "-seed=1", "-timeout=60", "-print_final_stats=1"]
    # The resident size that libFuzzer sees includes that of the process which started it: limit single blocks instead.
    command += ["-rss_limit_mb=0", "-malloc_limit_mb=1024", "-artifact_prefix=./", str(corpus)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def seed_tokenizer(folder: Path, kind: str) -> dict[str, str]:
    """Write a sound file and seeds for the three kinds of input; return the environment."""
    flat = tokenizer_files(folder)[1] if kind == "own" else flat_file(*foreign_tokenizer(kind, folder))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, text in enumerate(strings(200)):
        (corpus / f"text{number}").write_bytes(b"\0" + text.encode())
    (corpus / "file").write_bytes(b"\1" + flat.read_bytes())
    (corpus / "change").write_bytes(b"\2" + bytes([0, 0, 64, 1]))
    return {"POCKETLENS_TOKENIZER_BIN": str(flat)}


def test_the_preprocessor_survives_any_picture(tmp_path: Path) -> None:
    assert "number_of_executed_units: 2000" in fuzz("fuzz_preprocess", tmp_path, "-runs=2000")


@pytest.mark.parametrize("kind", ["own", "transformers", "bert"])
def test_the_tokenizer_survives_any_text_and_any_file(tmp_path: Path, kind: str) -> None:
    environment = seed_tokenizer(tmp_path, kind)
    assert "number_of_executed_units: 5000" in fuzz("fuzz_tokenizer", tmp_path, "-runs=5000", environment)


@pytest.mark.slow
def test_the_preprocessor_survives_a_minute(tmp_path: Path) -> None:
    assert "Done" in fuzz("fuzz_preprocess", tmp_path, "-max_total_time=60")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["own", "transformers", "bert"])
def test_the_tokenizer_survives_a_minute(tmp_path: Path, kind: str) -> None:
    assert "Done" in fuzz("fuzz_tokenizer", tmp_path, "-max_total_time=60", seed_tokenizer(tmp_path, kind))
