"""Answers from the file beside the index: always those of the store, whatever became of its rows or of the file."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketlens.core.errors import StoreError
from pocketlens.runtime import Filter, Store
from pocketlens.runtime.store import building
from pocketlens.runtime.store.nearest import index_folder_of
from tests.runtime.store_rows import opened, row, vectors

ROWS, DIM = 1500, 32
NAMES = {3: os.fsdecode(b"/p/\xff\xfe"), 4: "/p/ж"}


def _filled(path: Path, **options: object) -> Store:
    store = opened(path, dim=DIM, exact_rows=500, **options)
    table = vectors(ROWS, dim=DIM)
    store.write(
        [
            row(
                NAMES.get(n, f"/p/{n}"),
                vector,
                content=str(n),
                album="a" if n % 2 else None,
                caption=None if n == 5 else f"says {n}",
            )
            for n, vector in enumerate(table)
        ]
    )
    store.prepare()
    assert store.stats().index_kind == "hnsw"
    return store


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "binary"])
def test_an_answer_says_what_the_store_says(tmp_path: Path, dtype: str) -> None:
    with _filled(tmp_path / "s", dtype=dtype) as store:
        for number in (3, 4, 5, 77):
            hits = store.search(store.vector(number + 1), k=12)
            assert hits[0].path == NAMES.get(number, f"/p/{number}")
            assert len({hit.id for hit in hits}) == 12
            for hit in hits:
                assert msgspec.structs.replace(hit, score=0) == store.hit(hit.id)
                assert hit.score == pytest.approx(float(store.vector(hit.id) @ store.vector(number + 1)), abs=1e-6)


def test_many_queries_in_one_call_are_answered_as_one_by_one(tmp_path: Path) -> None:
    queries = vectors(40, seed=3, dim=DIM)
    odd = Filter(album="a")
    with _filled(tmp_path / "s", threads=2) as store:
        for wanted in (None, odd, Filter(tenant="nobody")):
            one_by_one = [store.search(query, k=7, filter=wanted) for query in queries]
            for mine, other in zip(store.search_many(queries, k=7, filter=wanted), one_by_one, strict=True):
                assert [hit.id for hit in mine] == [hit.id for hit in other]
                np.testing.assert_allclose([hit.score for hit in mine], [hit.score for hit in other], atol=1e-6)
        assert store.search_many(np.empty((0, DIM), dtype=np.float32)) == []
        with pytest.raises(StoreError, match="query 1"):
            store.search_many(np.array([[0.0] * DIM, [np.nan] * DIM], dtype=np.float32))
        with pytest.raises(ValueError, match="at least 1"):
            store.search_many(queries, k=0)
    with opened(tmp_path / "scan", dim=DIM) as store:
        store.write([row(f"/p/{n}", vector) for n, vector in enumerate(queries)])
        assert [hits[0].path for hits in store.search_many(queries)] == [f"/p/{n}" for n in range(40)]


@pytest.mark.parametrize("writer", ["itself", "another"])
def test_changes_are_in_the_next_answer(tmp_path: Path, writer: str) -> None:
    table = vectors(ROWS, dim=DIM)
    with _filled(tmp_path / "s") as store, opened(tmp_path / "s", dim=DIM, exact_rows=500) as other:
        changing = store if writer == "itself" else other
        store.search(table[8])
        changing.label(["/p/8"], album="new")
        assert store.search(table[8], k=1)[0].album == "new"
        changing.label(["/p/8"], visibility="hidden")
        assert "/p/8" not in {hit.path for hit in store.search(table[8])}
        assert "/p/8" not in {hit.path for hits in store.search_many(table[8:9]) for hit in hits}
        changing.write(removed=["/p/9"])
        assert len(hits := store.search(table[9], k=20)) == 20
        assert "/p/9" not in {hit.path for hit in hits}
        changing.write([row("/p/10", table[11], content="edited")])
        assert {hit.path for hit in store.search(table[11], k=2)} == {"/p/10", "/p/11"}
        changing.erase(file="/p/12")
        assert "/p/12" not in {hit.path for hits in store.search_many(table[12:13], k=20) for hit in hits}


def test_a_file_that_is_being_overwritten_is_not_believed(tmp_path: Path) -> None:
    table = vectors(ROWS, dim=DIM)
    with _filled(tmp_path / "s") as store:
        before = [store.search(query, k=5) for query in table[:20]]
        (rows,) = index_folder_of(tmp_path / "s").glob("*.rows")
        with rows.open("r+b") as file:
            # As an erasure by another process does.
            file.write(bytes(rows.stat().st_size))
        after = [store.search(query, k=5) for query in table[:20]]
    for mine, other in zip(after, before, strict=True):
        assert [(hit.id, hit.caption) for hit in mine] == [(hit.id, hit.caption) for hit in other]


def test_a_tenant_never_sees_rows_of_another(tmp_path: Path) -> None:
    with _filled(tmp_path / "s") as store:
        table = vectors(50, seed=4, dim=DIM)
        store.write([row(f"/p/{n}", vector, tenant="ann") for n, vector in enumerate(table)])
        mine = store.search_many(table, k=5, filter=Filter(tenant="ann"))
        assert {hit.tenant for hits in mine for hit in hits} == {"ann"}
        assert [hits[0].path for hits in mine] == [f"/p/{n}" for n in range(50)]
        assert {hit.tenant for hits in store.search_many(table, k=5) for hit in hits} == {""}


def test_usearch_makes_the_index_where_faiss_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = vectors(ROWS, dim=DIM)
    with _filled(tmp_path / "faiss") as store:
        assert store.search(table[1], k=1)[0].path == "/p/1"
    monkeypatch.setattr(building.compressed, "is_available", lambda: False)
    with opened(tmp_path / "faiss", dim=DIM, exact_rows=500) as store:
        assert store.stats().index_kind == "scan"  # this program cannot read it
        assert store.search(table[1], k=1)[0].path == "/p/1"
        store.prepare()
        assert store.stats().index_kind == "hnsw"
    with _filled(tmp_path / "s") as store:
        found = store.search_many(table[:60], k=10)
        right = np.argsort(-(table[:60] @ table.T), axis=1)[:, :10]
        shares = [
            len({hit.id - 1 for hit in hits} & set(best.tolist())) / 10 for hits, best in zip(found, right, strict=True)
        ]
        assert np.mean(shares) >= 0.99
        assert [hits[0].id for hits in found] == [store.search(query, k=1)[0].id for query in table[:60]]
