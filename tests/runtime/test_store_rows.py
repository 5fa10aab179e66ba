"""Rows: idempotent writes, checksums, forms of vectors, copies, and stores of the first schema."""

from pathlib import Path
from typing import get_args

import apsw
import numpy as np
import pytest

from pocketlens.core.errors import StoreError
from pocketlens.runtime import Filter, Store
from pocketlens.runtime.store import Dtype, Known, Refused
from pocketlens.runtime.store.encoding import blob_bytes, decode, encode
from tests.runtime.store_rows import DIM, opened, row, vectors


def test_writing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    first, second = vectors(2)
    with opened(tmp_path / "s") as store:
        assert store.write([row("/a", first)]).added == 1
        found = store.search(first, k=1)
        again = store.write([row("/a", second, caption="another model of the same bytes")])
        assert (again.added, again.unchanged) == (0, 1)
        assert store.search(first, k=1) == found


def test_other_bytes_or_a_newer_version_replace_and_an_older_one_is_ignored(tmp_path: Path) -> None:
    first, second, third = vectors(3)
    with opened(tmp_path / "s") as store:
        store.write([row("/a", first, version=2)])
        assert store.write([row("/a", second, version=1, content="old")]).older == 1
        assert store.search(first, k=1)[0].score == pytest.approx(1, abs=1e-6)
        assert store.write([row("/a", second, version=2, content="edited")]).added == 1
        assert store.write([row("/a", third, version=3, content="edited")]).added == 1
        assert len(store) == 1
        assert store.search(third, k=1)[0].score == pytest.approx(1, abs=1e-6)


def test_a_file_can_have_several_moments_and_they_are_replaced_together(tmp_path: Path) -> None:
    table = vectors(4)
    moments = [row("/v.mp4", v, modality="video", at_ms=1000 * n, until_ms=1000 * n + 900) for n, v in enumerate(table)]
    with opened(tmp_path / "s") as store:
        store.write(moments)
        hit = store.search(table[2], k=1)[0]
        assert (hit.path, hit.modality, hit.at_ms, hit.until_ms) == ("/v.mp4", "video", 2000, 2900)
        assert store.write(moments).unchanged == 1
        store.write([row("/v.mp4", table[0], content="cut shorter", modality="video")])
        assert len(store) == 1


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    first, second = vectors(2)
    with opened(tmp_path / "s") as store:
        store.write([row("/a", first, tenant="ann"), row("/a", second, tenant="bob")])
        store.write(refused=[Refused(path="/r", kind="corrupt", message="why")], tenant="ann")
        assert [hit.tenant for hit in store.search(first, filter=Filter(tenant="bob"))] == ["bob"]
        assert store.search(first) == []
        assert store.refused() == []
        assert store.copies([row("/a", first).sha256], tenant="eve") == {}
        store.write(removed=["/a"], tenant="ann")
        assert len(store) == 1


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_each_form_of_vectors_keeps_the_order_of_a_search(tmp_path: Path, dtype: Dtype) -> None:
    table = vectors(300, dim=64)
    query = vectors(1, seed=5, dim=64)[0]
    with opened(tmp_path / "s", dim=64, dtype=dtype) as store:
        store.write([row(f"/{n}", vector) for n, vector in enumerate(table)])
        hits = store.search(query, k=10)
    best = np.argsort(-(table @ query))[:10]
    expected = {f"/{n}" for n in best}
    assert len(expected & {hit.path for hit in hits}) >= (10 if dtype == "fp32" else 9)
    tolerance = {"fp32": 1e-6, "fp16": 1e-3}.get(dtype, 0.02)
    np.testing.assert_allclose([hit.score for hit in hits], (table @ query)[best], atol=tolerance)


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_encoded_vectors_have_the_stated_length_and_come_back(dtype: Dtype) -> None:
    table = vectors(5, dim=70)
    blobs = encode(table, dtype)
    assert {len(blob) for blob in blobs} == {blob_bytes(dtype, 70)}
    back = decode(blobs, dtype, 70)
    assert (back * table).sum(axis=1).min() > 0.999


def test_an_existing_store_keeps_its_form_of_vectors(tmp_path: Path) -> None:
    opened(tmp_path / "s", dtype="int8").close()
    with opened(tmp_path / "s") as store:
        store.write([row("/a", vectors(1)[0])])
        assert store.stats().dtype == "int8"
        assert store.search(vectors(1)[0], k=1)[0].score == pytest.approx(1, abs=0.01)


def test_copies_give_the_rows_of_the_same_bytes(tmp_path: Path) -> None:
    vector = vectors(1)[0]
    with opened(tmp_path / "s") as store:
        store.write([row("/a", vector, content="same", caption="a cat")])
        ((digest, (copy,)),) = store.copies([row("/b", vector, content="same").sha256]).items()
        assert digest == copy.sha256
        assert (copy.path, copy.caption) == ("/a", "a cat")
        np.testing.assert_array_equal(copy.vector, vector)


def test_near_duplicates_are_grouped_through_their_neighbours(tmp_path: Path) -> None:
    base = vectors(4)
    near = [base[0], base[0] + 0.05 * base[1], base[0] + 0.1 * base[1], base[2], base[3], base[3]]
    table = [vector / np.linalg.norm(vector) for vector in near]
    with opened(tmp_path / "s") as store:
        store.write([row(f"/{n}", vector) for n, vector in enumerate(table)])
        groups = [[hit.path for hit in group] for group in store.duplicates(least=0.99)]
        assert groups == [["/0", "/1", "/2"], ["/4", "/5"]]
        assert store.duplicates(tenant="nobody") == []


def _damage(file: Path, sql: str) -> None:
    connection = apsw.Connection(str(file))
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("UPDATE entries SET vector = zeroblob(64) WHERE id = 2", "entry"),
        ("UPDATE entries SET caption = 'a lie' WHERE id = 2", "entry"),
        ("UPDATE entries SET confidence = 1.0 WHERE id = 2", "entry"),
        ("UPDATE entries SET dtype = 'fp16' WHERE id = 2", "entry"),
        ("UPDATE files SET album = 'elsewhere' WHERE id = 2", "file"),
    ],
)
def test_a_damaged_row_is_found_left_out_and_repaired(tmp_path: Path, sql: str, kind: str) -> None:
    table = vectors(3)
    with opened(tmp_path / "s") as store:
        store.write([row(f"/p/{n}", vector) for n, vector in enumerate(table, 1)])
    _damage(tmp_path / "s", sql)
    with opened(tmp_path / "s") as store:
        assert [hit.path for hit in store.search(table[1])].count("/p/2") == 0
        assert len(store.search(table[1])) == 2
        damages = [(damage.kind, damage.id) for damage in store.damages() if damage.kind != "words"]
        assert damages == [(kind, 2)]
        with pytest.raises(StoreError, match=r"/p/2\): another checksum|wrong length"):
            store.check()
        assert store.repair() >= 1
        assert store.damages() == []
        assert sorted(store.known("/p")) == ["/p/1", "/p/3"]  # the next index makes the second again
        store.write([row("/p/2", table[1])])
        assert store.search(table[1], k=1)[0].path == "/p/2"


def test_words_of_a_damaged_caption_are_gone_after_a_repair(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        store.write([row("/a", vectors(1)[0], caption="zebra crossing"), row("/b", vectors(2)[1], caption="a cat")])
    _damage(tmp_path / "s", "UPDATE entries SET caption = 'horse' WHERE id = 1")
    with opened(tmp_path / "s") as store:
        assert "words" in {damage.kind for damage in store.damages()}
        store.repair()
        assert store.search(words="zebra") == []
        assert [hit.path for hit in store.search(words="cats")] == ["/b"]


FIRST_SCHEMA = """
CREATE TABLE model(version TEXT NOT NULL, dim INTEGER NOT NULL) STRICT;
CREATE TABLE pictures(
    id INTEGER PRIMARY KEY, path ANY NOT NULL UNIQUE, sha256 BLOB NOT NULL, size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, model_version TEXT NOT NULL, dim INTEGER NOT NULL, vector BLOB NOT NULL,
    caption TEXT, confidence REAL, indexed_at INTEGER NOT NULL
) STRICT;
CREATE TABLE refused(path ANY NOT NULL UNIQUE, kind TEXT NOT NULL, message TEXT NOT NULL) STRICT;
PRAGMA application_id = 1349281134;
PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_schema_is_brought_to_this_one(tmp_path: Path) -> None:
    table = vectors(2000)
    connection = apsw.Connection(str(tmp_path / "s"))
    connection.execute(FIRST_SCHEMA)
    connection.execute("INSERT INTO model VALUES('v1', ?)", (DIM,))
    rows = [
        (n, f"/p/{n}", bytes([n % 256]) * 32, n, n, "v1", DIM, vector.tobytes(), f"number {n}", 0.25, 1_700_000_000)
        for n, vector in enumerate(table, 1)
    ]
    connection.executemany("INSERT INTO pictures VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute("INSERT INTO refused VALUES('/p/bad', 'corrupt', 'why')")
    connection.close()
    for _ in range(2):
        with Store.open(tmp_path / "s", model_version="v1", dim=DIM, create=False) as store:
            assert store.damages() == []
            assert len(store) == 2000
            assert store.known("/p")["/p/7"] == Known(path="/p/7", sha256=b"\x07" * 32, size_bytes=7, mtime_ns=7)
            hit = store.search(table[6], k=1)[0]
            assert (hit.path, hit.caption, hit.confidence) == ("/p/7", "number 7", 0.25)
            assert [hit.path for hit in store.search(words="1234")] == ["/p/1234"]
            assert [item.path for item in store.refused()] == ["/p/bad"]


def test_a_store_can_be_opened_without_naming_its_model(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    with Store.open(tmp_path / "s") as store:
        assert (store.model_version, store.dim) == ("v1", DIM)
    with pytest.raises(StoreError, match="nothing at that path"):
        Store.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_labels_change_what_a_filter_finds(tmp_path: Path) -> None:
    table = vectors(3)
    with opened(tmp_path / "s") as store:
        store.write([row(f"/{n}", vector) for n, vector in enumerate(table)])
        assert store.label(["/0", "/1", "/none"], album="summer") == 2
        store.label(["/1"], visibility="hidden")
        assert [hit.path for hit in store.search(table[0], filter=Filter(album="summer"))] == ["/0"]
        both = Filter(album="summer", visibility=("visible", "hidden"))
        assert {hit.path for hit in store.search(table[0], filter=both)} == {"/0", "/1"}
        assert store.damages() == []
