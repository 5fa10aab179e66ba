"""`pocketlens embed DIR --out`: the whole command, killed, continued, and told wrong things."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Run, png


def test_a_folder_goes_into_one_file_and_stdout_says_so(run: Run, bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    ended = run("embed", folder, "--bundle", bundle, "--out", out, "--threads", 2)
    assert ended.code == 0
    assert ended.lines == [f"20 vectors of 8, 0 of 20 pictures from an earlier run, 0 refused: {out}"]
    assert "embed 20/20" in ended.err
    assert np.load(out).shape == (20, 8)
    again = run("embed", folder, "--bundle", bundle, "--out", out, "--json")
    assert again.records == [
        {"out": str(out), "model_version": "tiny-3", "dim": 8, "rows": 20, "resumed": 20, "refused": 0}
    ]


def test_refused_pictures_are_listed_and_the_exit_code_says_so(
    run: Run, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    ended = run("embed", folder, "--bundle", bundle, "--out", tmp_path / "v.npy")
    assert ended.code == 1
    assert any(line.startswith("refused unknown_type: bad.png: expected") for line in ended.told)


def test_the_same_vectors_as_without_out(run: Run, bundle: Path, folder: Path, tmp_path: Path) -> None:
    run("embed", folder, "--bundle", bundle, "--out", tmp_path / "v.npy")
    files = sorted(folder.iterdir())
    lines = run("embed", *files, "--bundle", bundle, "--json").records
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), [line["embedding"] for line in lines], atol=1e-6)


def test_a_killed_command_goes_on(run: Run, bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(1200):
        (root / f"{number:04}.png").write_bytes(png(number % 50))
    out = tmp_path / "v.npy"
    sidecar = tmp_path / "v.npy.files.jsonl"
    command = [sys.executable, "-m", "pocketlens", "embed", root, "--bundle", bundle, "--out", out, "--threads", "2"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while started.poll() is None and time.monotonic() < deadline:
        if sidecar.exists() and sidecar.stat().st_size > 1000:
            os.kill(started.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert started.wait(60) == -signal.SIGKILL
    assert not out.exists()
    ended = run("embed", root, "--bundle", bundle, "--out", out, "--json")
    assert ended.code == 0
    assert 0 < ended.records[0]["resumed"] < 1200
    assert ended.records[0]["rows"] == 1200
    entries = [json.loads(line) for line in sidecar.read_text().splitlines()[1:]]
    assert [entry["file"] for entry in entries] == [f"{number:04}.png" for number in range(1200)]
    vectors = np.load(out)
    np.testing.assert_allclose(vectors, np.tile(vectors[:50], (24, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [("one.png", "two.png", "--out", "v.npy"), ("one.png", "--workers", "ray"), ("one.png", "--engine", "ray")],
)
def test_what_does_not_go_together_is_a_wrong_command_line(run: Run, bundle: Path, arguments: tuple[str, ...]) -> None:
    ended = run("embed", *arguments, "--bundle", bundle)
    assert ended.code == 2
    assert "--out" in ended.err


def test_typed_errors(run: Run, bundle: Path, folder: Path, tmp_path: Path) -> None:
    run("embed", folder, "--bundle", bundle, "--out", tmp_path / "missing.npy", "--max-pixels", 1000)
    other = run("embed", folder, "--bundle", bundle, "--out", tmp_path / "missing.npy")
    assert "at most 1000 pixels" in other.refuses("DataError", 6)
    for source, out in ((tmp_path / "nothing", "a.npy"), (folder, "a.csv"), (folder, "no/folder/a.npy")):
        run("embed", source, "--bundle", bundle, "--out", tmp_path / out).refuses("DataError", 6)


def test_max_pixels_holds_for_single_files_too(run: Run, bundle: Path, folder: Path) -> None:
    ended = run("embed", folder / "00.png", "--bundle", bundle, "--max-pixels", 100)
    ended.refuses("PictureError", 3)
