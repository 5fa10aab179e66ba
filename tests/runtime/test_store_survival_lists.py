"""What a store with lists (IVF-PQ) comes through; the long runs are benchmarks."""

import random
from pathlib import Path

import pytest

from benchmarks.listed_rows import require_lists, searched, tear_index
from benchmarks.power_cuts import cut
from benchmarks.store_kills import DIM, filled_with_lists, kill

pytest.importorskip("faiss")


def test_kills_lose_no_acknowledged_row_and_leave_lists_that_answer_right(tmp_path: Path) -> None:
    found = kill(tmp_path, 4, seed=3, lists=True)
    assert (found["kills"], found["lost"], found["wrong answers"], found["by lists"]) == (4, 0, 0, 4)
    assert found["nearest found"] >= 0.99 * found["nearest"] > 0


@pytest.mark.slow
def test_power_cuts_and_torn_indexes_lose_no_acknowledged_row(tmp_path: Path) -> None:
    found = cut(tmp_path, 4, seed=3, lists=True)
    assert (found["cuts"], found["lost"], found["damaged stores"], found["wrong answers"]) == (4, 0, 0, 0)
    assert (found["by lists"], found["indexes torn"]) == (4, 2)
    assert found["index gone"] >= 2  # a torn one is noticed and built again


def test_the_check_of_answers_notices_a_row_that_should_be_another(tmp_path: Path) -> None:
    # The proof that the tests above can fail.
    path, numbers = tmp_path / "s", random.Random(1)
    expected = filled_with_lists(path)
    assert searched(path, DIM, expected, numbers)["wrong answers"] == 0
    assert searched(path, DIM, dict.fromkeys(expected, 2), numbers)["wrong answers"] > 0
    assert tear_index(path, numbers)
    assert searched(path, DIM, expected, numbers)["index gone"] == 1
    with pytest.raises(SystemExit, match="expected a store that searches lists"):
        require_lists(94, 100)
