"""The store: what comes back, what is refused, what survives."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.errors import StorageFull, StoreError
from pocketlens.runtime import Store
from pocketlens.runtime.store import Known, Refused, Row

DIM = 6


def _vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    table = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return np.asarray(table / np.linalg.norm(table, axis=1, keepdims=True), dtype=np.float32)


def _row(path: str, vector: NDArray[np.float32], caption: str | None = "a caption") -> Row:
    return Row(
        path=path,
        sha256=b"\x01" * 32,
        size_bytes=5,
        mtime_ns=2**60 + 1,
        vector=vector,
        caption=caption,
        confidence=None if caption is None else 0.25,
    )


def _open(path: Path, version: str = "v1", **options: bool) -> Store:
    return Store.open(path, model_version=version, dim=DIM, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    with _open(file) as opened:
        yield opened


def test_search_is_exact_and_sorted(store: Store) -> None:
    vectors = _vectors(10_000)  # more than two blocks
    store.write([_row(f"/p/{index}", vector) for index, vector in enumerate(vectors)])
    query = _vectors(1, seed=1)[0]
    expected = np.argsort(-(vectors @ query), kind="stable")[:25]
    hits = store.search(query, k=25)
    assert [hit.path for hit in hits] == [f"/p/{index}" for index in expected]
    np.testing.assert_allclose([hit.score for hit in hits], (vectors @ query)[expected], atol=1e-6)


def test_equal_scores_come_in_the_order_of_indexing(store: Store) -> None:
    vector = _vectors(1)[0]
    store.write([_row(path, vector) for path in ("/b", "/a", "/c")])
    assert [hit.path for hit in store.search(vector, k=2)] == ["/b", "/a"]


def test_an_empty_store_and_a_large_k_give_what_there_is(store: Store) -> None:
    vector = _vectors(1)[0]
    assert store.search(vector) == []
    store.write([_row("/a", vector, caption=None)])
    (hit,) = store.search(vector, k=50)
    assert (hit.path, hit.score, hit.caption, hit.confidence) == ("/a", pytest.approx(1, abs=1e-6), None, None)


def test_rows_come_back_after_closing(file: Path) -> None:
    vectors = _vectors(3)
    with _open(file) as store:
        store.write([_row(f"/p/{index}", vector) for index, vector in enumerate(vectors)])
    with _open(file, create=False) as store:
        assert len(store) == 3
        hit = store.search(vectors[2], k=1)[0]
        assert (hit.path, hit.caption, hit.confidence) == ("/p/2", "a caption", 0.25)
        known = Known(path="/p/1", sha256=b"\x01" * 32, size_bytes=5, mtime_ns=2**60 + 1)
        assert store.known("/p")["/p/1"] == known


def test_a_path_is_one_row(store: Store) -> None:
    first, second = _vectors(2)
    store.write([_row("/a", first)])
    store.write([_row("/a", second, caption="newer")], replace=True)
    assert len(store) == 1
    assert store.search(second, k=1)[0].caption == "newer"


def test_known_keeps_to_its_folder(store: Store) -> None:
    vector = _vectors(1)[0]
    store.write([_row(path, vector) for path in ("/p/a", "/p/q/b", "/pq/c", "/p")])
    assert sorted(store.known("/p")) == ["/p/a", "/p/q/b"]
    assert len(store.known("/")) == 4


def test_a_file_name_that_is_no_utf8_is_kept_as_it_is(store: Store) -> None:
    path, vector = "/p/\udcff\n'\u00e4.png", _vectors(1)[0]
    store.write([_row(path, vector)])
    assert store.search(vector, k=1)[0].path == path
    assert list(store.known("/p")) == [path]
    store.write(refused=[Refused(path=path, kind="corrupt", message=f"{path}: broken")])
    assert [item.path for item in store.refused()] == [path]
    assert len(store) == 0
    store.write(removed=[path])
    assert store.refused() == []


def test_a_refused_file_loses_its_row_and_a_good_one_its_refusal(store: Store) -> None:
    vector = _vectors(1)[0]
    refusal = Refused(path="/a", kind="corrupt", message="why")
    store.write([_row("/a", vector)])
    store.write(refused=[refusal])
    assert len(store) == 0
    assert store.refused() == [refusal]
    store.write([_row("/a", vector)])
    assert len(store) == 1
    assert store.refused() == []


def test_touched_changes_size_and_time_only(store: Store) -> None:
    vector = _vectors(1)[0]
    store.write([_row("/p/a", vector)])
    touched = Known(path="/p/a", sha256=b"\x01" * 32, size_bytes=5, mtime_ns=7)
    store.write(touched=[touched])
    assert store.known("/p") == {"/p/a": touched}
    assert store.search(vector, k=1)[0].caption == "a caption"


def test_vectors_of_another_model_version_are_refused(file: Path) -> None:
    _open(file, "v1").close()
    with pytest.raises(StoreError, match=r"model version v2 with 6 dimensions; found v1 with 6"):
        _open(file, "v2")
    with pytest.raises(StoreError, match=r"found v1 with 6 dimensions"):
        Store.open(file, model_version="v1", dim=7)
    _open(file, "v1").close()


def test_a_store_that_must_exist_is_not_made(file: Path) -> None:
    with pytest.raises(StoreError, match="pocketlens index"):
        _open(file, create=False)
    assert not file.exists()


@pytest.mark.parametrize("content", [b"this is a text and not a database, however long it may be" * 20, b"\x00" * 8192])
def test_a_file_that_is_no_database_is_a_store_error_and_stays_as_it_is(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.db"):
        _open(file)
    assert file.read_bytes() == content


def test_a_database_of_another_program_is_refused(file: Path) -> None:
    connection = apsw.Connection(str(file))
    connection.execute("CREATE TABLE recipes(name)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        _open(file)


def test_a_store_of_a_newer_schema_is_refused(file: Path) -> None:
    _open(file).close()
    connection = apsw.Connection(str(file))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StoreError, match="schema 99"):
        _open(file)


def test_a_damaged_file_is_a_store_error(file: Path) -> None:
    vectors = _vectors(3000)
    with _open(file) as store:
        store.write([_row(f"/p/{index}", vector) for index, vector in enumerate(vectors)])
    data = bytearray(file.read_bytes())
    data[8192:-8192] = b"\xa5" * (len(data) - 16384)
    file.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="damaged"), _open(file) as store:
        store.search(vectors[0])
    with pytest.raises(StoreError, match="damaged"), _open(file) as store:
        store.check()


def test_a_vector_of_the_wrong_length_in_the_file_is_no_answer_and_is_reported(file: Path) -> None:
    with _open(file) as store:
        store.write([_row("/a", _vectors(1)[0])])
    connection = apsw.Connection(str(file))
    connection.execute("UPDATE entries SET vector = x'00'")
    connection.close()
    with _open(file) as store:
        assert store.search(_vectors(1)[0]) == []
        assert store.damaged == {1}
        with pytest.raises(StoreError, match="wrong length"):
            store.check()


def test_a_sound_store_passes_its_check(store: Store) -> None:
    store.write([_row("/a", _vectors(1)[0])])
    store.check()


def test_a_place_that_cannot_hold_a_store_is_a_store_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "store.db"):
        with pytest.raises(StoreError, match="folder exists"):
            _open(path)


def test_a_store_that_somebody_else_writes_to_can_be_read_and_not_written(
    file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = apsw.Connection(str(file))
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("pocketlens.runtime.store.database._BUSY_MS", 1)
    with _open(file) as reader:
        assert reader.search(_vectors(1)[0]) == []  # reading goes on
        with pytest.raises(StoreError, match="nobody else writes"):
            reader.write([_row("/a", _vectors(1)[0])])
    other.close()


@pytest.mark.parametrize("vector", [np.zeros(DIM + 1, np.float32), np.full(DIM, np.nan, np.float32)])
def test_vectors_that_do_not_fit_are_refused_and_nothing_is_written(store: Store, vector: NDArray[np.float32]) -> None:
    with pytest.raises(StoreError, match=r"finite numbers of shape \(6,\)"):
        store.write([_row("/good", _vectors(1)[0]), _row("/bad", vector)])
    with pytest.raises(StoreError, match="the query"):
        store.search(vector)
    assert len(store) == 0


def test_k_below_one_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="k: expected"):
        store.search(_vectors(1)[0], k=0)


def test_a_full_disk_keeps_what_was_written_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allow_forty_pages(connection: apsw.Connection) -> None:
        connection.pragma("max_page_count", 40)

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, allow_forty_pages])
    vectors = _vectors(2000)
    rows = [_row(f"/p/{index}", vector) for index, vector in enumerate(vectors)]
    with _open(file) as store:
        store.write(rows[:50])
        with pytest.raises(StorageFull, match="what was indexed is kept"):
            store.write(rows[50:])
        assert len(store) == 50
        store.write(rows[50:60])
    with _open(file) as store:
        assert len(store) == 60
        store.check()


def test_commits_are_synced_to_the_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A power cut cannot be had in a test; the settings that decide about it can.
    connections: list[apsw.Connection] = []
    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, connections.append])
    with _open(file):
        (connection,) = connections
        assert connection.pragma("synchronous") == 3  # EXTRA
        assert connection.pragma("journal_mode") == "wal"
