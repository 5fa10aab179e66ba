"""`pocketlens store` and the ways to search that `test_cli` leaves out."""

from pathlib import Path

import apsw
import pytest

from tests.e2e.conftest import Run


@pytest.fixture
def store(bundle: Path, folder: Path, run: Run) -> Path:
    assert run("index", folder, "-b", bundle, "--album", "holiday").code == 0
    return folder.parent / "pocketlens.sqlite"


def test_search_by_picture_row_filter_and_exclusion(bundle: Path, folder: Path, store: Path, run: Run) -> None:
    search = ("search", "-b", bundle, "--store", store, "--json")
    picture = sorted(folder.iterdir())[3]
    [found] = run(*search, "--image", picture, "-k", 1).records
    assert found["path"] == str(picture)
    near = run(*search, "--like", found["id"], "-k", 3).records
    assert len(near) == 3
    assert found["id"] not in {hit["id"] for hit in near}
    assert run(*search, "a", "--album", "nothing").records == []
    assert run(*search, "a", "--tenant", "nobody").records == []
    assert len(run(*search, "a", "--folder", folder, "-k", 100).records) == 20
    assert run(*search, "a", "--from", "2020-01-01").records == []  # none of the pictures says when it was taken
    word = found["caption"].split()[-1]
    kept = run(*search, "a", "--not", word, "-k", 100).records
    assert all(word not in hit["caption"].split() for hit in kept)
    assert all(hit["fused"] > 0 for hit in run(*search, found["caption"], "--hybrid").records)


def test_check_names_a_damaged_row_repair_removes_it_and_index_makes_it_again(
    bundle: Path, folder: Path, store: Path, run: Run
) -> None:
    assert run("store", "check", "--store", store).code == 0
    connection = apsw.Connection(str(store))
    connection.execute("UPDATE entries SET confidence = 2.0 WHERE id = 5")
    connection.close()
    damaged = run("store", "check", "--store", store, "--json")
    assert damaged.code == 11
    assert [(item["kind"], item["id"]) for item in damaged.records] == [("entry", 5)]
    assert "1 damaged rows" in run("search", "a", "-b", bundle, "--store", store, "-k", 100).err
    assert run("store", "repair", "--store", store, "--json").records == [{"removed": 1}]
    assert run("index", folder, "-b", bundle, "--json").records[0]["added"] == 1
    assert run("store", "check", "--store", store).code == 0


def test_erase_prints_a_receipt_and_stats_count_it(bundle: Path, folder: Path, store: Path, run: Run) -> None:
    file = sorted(folder.iterdir())[0]
    [receipt] = run("store", "erase", "--store", store, "--file", file, "--json").records
    assert (receipt["scope"], receipt["rows"], receipt["residues"]) == ("file", 1, 0)
    [receipt] = run("store", "erase", "--store", store, "--album", "holiday", "--json").records
    assert receipt["rows"] == 19
    [stats] = run("store", "stats", "--store", store, "--json").records
    assert (stats["files"], stats["erasures"]) == (0, 2)
    run("store", "erase", "--store", store).refuses("StoreError", 11)
    assert run("store", "compact", "--store", store).code == 0


def test_an_upgrade_to_the_same_bundle_does_nothing_and_there_is_no_way_back(
    bundle: Path, store: Path, run: Run
) -> None:
    [status] = run("store", "upgrade", "-b", bundle, "--store", store, "--json").records
    assert (status["shadow"], status["previous"]) == (None, None)
    run("store", "rollback", "--store", store).refuses("StoreError", 11)
    assert run("store", "cancel", "--store", store).code == 0
    assert run("store", "duplicates", "--store", store).code == 0
