"""What a store comes through: kills, power cuts, full, failing and read-only disks. The long runs are benchmarks."""

import random
from pathlib import Path

import apsw
import pytest

from benchmarks.power_cuts import cut
from benchmarks.store_kills import kill
from pocketlens.core.errors import StorageFull, StoreError
from pocketlens.runtime import Store
from tests.runtime.faulty_disk import faulty_disk
from tests.runtime.store_rows import opened, row, vectors


def test_kills_lose_no_acknowledged_row(tmp_path: Path) -> None:
    found = kill(tmp_path, 12, seed=3)
    assert (found["kills"], found["lost"]) == (12, 0)
    assert found["acknowledged writes"] > 10


def test_power_cuts_lose_no_acknowledged_row(tmp_path: Path) -> None:
    found = cut(tmp_path, 40, seed=3)
    assert (found["cuts"], found["lost"], found["damaged stores"]) == (40, 0, 0)
    assert found["acknowledged changes"] > 60


def test_a_disk_that_lies_about_syncs_does_lose_rows(tmp_path: Path) -> None:
    # The proof that the test above can fail.
    found = cut(tmp_path, 40, seed=3, lying=True)
    assert found["lost"] + found["damaged stores"] > 0


@pytest.mark.parametrize(("kind", "expected"), [(apsw.IOError, StoreError), (apsw.FullError, StorageFull)])
@pytest.mark.parametrize("stays_broken", [True, False])
def test_a_disk_that_fails_at_any_operation_is_a_typed_error_and_the_store_opens_again(
    tmp_path: Path, kind: type[apsw.Error], expected: type[StoreError], stays_broken: bool
) -> None:
    table = vectors(6)
    path = tmp_path / "s"
    with opened(path) as store:
        store.write([row("/0", table[0])])
    numbers = random.Random(1)
    for fails_at in sorted(numbers.sample(range(1, 60), 14)):
        with faulty_disk() as disk:
            disk.fails_at, disk.error, disk.stays_broken = fails_at, kind, stays_broken
            written = [0]
            try:
                with opened(path) as store:
                    for n in range(1, 6):
                        store.write([row(f"/{n}", table[n], content=f"{fails_at} {n}")])
                        written.append(n)
                    store.compact()
            except (StoreError, StorageFull) as error:
                assert isinstance(error, expected)  # noqa: PT017 -- an attempt may also go well
        with opened(path) as store:
            assert store.damages() == []
            assert {f"/{n}" for n in written} <= set(store.known("/"))


def test_a_read_only_disk_is_a_typed_error_and_harms_nothing(tmp_path: Path) -> None:
    table = vectors(2)
    with opened(tmp_path / "s") as store:
        store.write([row("/0", table[0])])
    with faulty_disk() as disk:
        disk.read_only = True
        with pytest.raises(StoreError, match="opened, read and written"), opened(tmp_path / "s") as store:
            store.write([row("/1", table[1])])
        with pytest.raises(StoreError):
            opened(tmp_path / "new")
    with opened(tmp_path / "s") as store:
        assert [hit.path for hit in store.search(table[0])] == ["/0"]


def test_an_index_that_cannot_be_written_is_a_typed_error_and_the_store_still_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = vectors(600)
    with opened(tmp_path / "s", exact_rows=500) as store:
        store.write([row(f"/{n}", vector) for n, vector in enumerate(table)])
        (tmp_path / "s.index").write_text("a file where the folder should be")
        with pytest.raises(StoreError, match="can be searched"):
            store.prepare()
        assert store.search(table[5], k=1)[0].path == "/5"


def test_two_threads_may_share_a_store(tmp_path: Path) -> None:
    import threading

    table = vectors(200)
    errors: list[BaseException] = []
    with opened(tmp_path / "s") as store:

        def work(first: int) -> None:
            try:
                for n in range(first, 200, 2):
                    store.write([row(f"/{n}", table[n])])
                    assert store.search(table[n], k=1)[0].path == f"/{n}"
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(store) == 200


def test_a_store_whose_index_was_deleted_under_it_goes_on(tmp_path: Path) -> None:
    table = vectors(600)
    with opened(tmp_path / "s", exact_rows=500) as store:
        store.write([row(f"/{n}", vector) for n, vector in enumerate(table)])
        store.prepare()
        for file in (tmp_path / "s.index").iterdir():
            file.unlink()
        assert store.search(table[5], k=1)[0].path == "/5"
    with Store.open(tmp_path / "s", exact_rows=500) as store:
        assert store.search(table[5], k=1)[0].path == "/5"
