"""However a child ends, the parent gets an answer or a typed error, in time."""

import os
import time
from pathlib import Path

import pytest

from pocketlens.core.errors import BundleCrashed, BundleTampered
from pocketlens.runtime.sandbox import Limits, run_limited

HERE = "tests.runtime.sandbox_functions"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds the functions of `sandbox_functions`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def _run(name: str, argument: bytes = b"", **limits: float) -> bytes:
    return run_limited(f"{HERE}:{name}", argument, what="bundle b", limits=Limits(**{"wall_s": 120.0, **limits}))  # type: ignore[arg-type]


def test_an_answer_comes_back() -> None:
    assert _run("echo", b"\0\xff and more") == b"\0\xff and more"


def test_an_error_of_ours_crosses() -> None:
    with pytest.raises(BundleTampered, match="what: expected e; found f"):
        _run("refuse")


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("segfault", {}, "SIGSEGV"),
        ("abort", {}, "SIGABRT"),
        ("leave", {}, "exit code 0 without an answer"),
        ("fail", {}, "exit code 1 without an answer: .*ZeroDivisionError"),
        ("spin", {"cpu_s": 2}, "2 s of processor time"),
        ("sleep", {"wall_s": 3.0}, "no end after 3 s"),
        ("linger", {"wall_s": 3.0}, "SIGKILL|exit code"),
        ("hog", {"memory_bytes": 2**26}, "no memory left"),
        ("flood", {}, "bytes of answer"),
        ("babble", {}, "without an answer"),
        ("invent", {}, "unknown error"),
        ("garble", {}, "an answer that is none"),
    ],
)
def test_every_other_end_is_a_crash_that_says_what_was_tried(name: str, limits: dict[str, float], said: str) -> None:
    with pytest.raises(BundleCrashed, match=said) as caught:
        _run(name, **limits)
    assert caught.value.what in {"bundle b", "bundle b, the graph"}
    assert caught.value.exit_code == 4


def test_large_files_cannot_be_written(tmp_path: Path) -> None:
    assert _run("write", os.fsencode(tmp_path / "file"), file_bytes=1000) == b"refused"
    assert (tmp_path / "file").stat().st_size <= 1000


def test_what_the_child_started_ends_with_it(tmp_path: Path) -> None:
    with pytest.raises(BundleCrashed):
        _run("start_another", os.fsencode(tmp_path / "pid"))
    grandchild = int((tmp_path / "pid").read_text())
    for _ in range(100):  # killed already, but who reaps it takes its time
        state = Path(f"/proc/{grandchild}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
