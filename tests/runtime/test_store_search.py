"""Searches: exact and approximate, with filters, words and things to keep away from."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError
from pocketlens.runtime import Filter, Store
from pocketlens.runtime.store import breadth, compressed, graph
from pocketlens.runtime.store.building import index_kinds
from pocketlens.runtime.store.nearest import IndexHeader, index_folder_of
from pocketlens.runtime.store.words import fused
from tests.runtime.store_rows import DIM, opened, row, vectors

ROWS = 3000


def _fill(store: Store, table: NDArray[np.float32], first: int = 0) -> None:
    store.write(
        [
            row(
                f"/p/{'few' if n % 100 == 7 else 'many'}/{n}",
                vector,
                album="tenth" if n % 10 == 3 else None,
                taken_at=n,
                modality="video" if n % 2 else "image",
            )
            for n, vector in enumerate(table, first)
        ]
    )


def _numbers(store: Store, query: NDArray[np.float32], **options: object) -> list[int]:
    hits = store.search(query, **options)  # type: ignore[arg-type]
    return [int(hit.path.rpartition("/")[2]) for hit in hits]


def _recall(
    store: Store, table: NDArray[np.float32], allowed: NDArray[np.bool_], wanted: Filter | None = None
) -> float:
    shares = []
    for query in vectors(30, seed=9):
        scores = np.where(allowed, table @ query, -2)
        best = set(np.argsort(-scores)[:10].tolist())
        shares.append(len(best & set(_numbers(store, query, filter=wanted))) / 10)
    return float(np.mean(shares))


@pytest.fixture(scope="module", params=["scan", "hnsw", "ivfpq"])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    path = tmp_path_factory.mktemp("big") / "s"
    # One of the three ways by its threshold: few rows, much memory, little memory.
    options = {"scan": {}, "hnsw": {"exact_rows": 500}, "ivfpq": {"exact_rows": 500, "memory": 300_000}}[request.param]
    with opened(path, **options) as store:
        _fill(store, vectors(ROWS))
        store.prepare()
        assert store.stats().index_kind == request.param
        assert store.stats().index_rows == (0 if request.param == "scan" else ROWS)
    return path, options


@pytest.mark.parametrize("share", ["all", "0.1 %", "1 %", "10 %", "50 %", "none"])
def test_every_way_of_searching_finds_the_nearest(big: tuple[Path, dict[str, int]], share: str) -> None:
    path, options = big
    number = np.arange(ROWS)
    wanted, allowed = {
        "all": (None, number >= 0),
        "0.1 %": (Filter(taken_from=30, taken_until=40), (number >= 30) & (number < 40)),
        "1 %": (Filter(folder="/p/few"), number % 100 == 7),
        "10 %": (Filter(album="tenth"), number % 10 == 3),
        "50 %": (Filter(modality="video"), number % 2 == 1),
        "none": (Filter(album="no such"), number < 0),
    }[share]
    with opened(path, **options) as store:
        if share == "none":
            assert store.search(vectors(1)[0], filter=wanted) == []
        else:
            assert _recall(store, vectors(ROWS), allowed, wanted) >= 0.99


def test_scores_are_exact_whatever_found_the_rows(big: tuple[Path, dict[str, int]]) -> None:
    path, options = big
    table, query = vectors(ROWS), vectors(1, seed=3)[0]
    with opened(path, **options) as store:
        hits = store.search(query, k=20)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    expected = [float(table[int(hit.path.rpartition("/")[2])] @ query) for hit in hits]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_new_changed_and_removed_rows_are_seen_at_once(tmp_path: Path) -> None:
    table = vectors(1200)
    extra = vectors(3, seed=4)
    with opened(tmp_path / "s", exact_rows=500) as store, opened(tmp_path / "s", exact_rows=500) as reader:
        _fill(store, table[:1000])
        store.prepare()
        assert reader.search(table[5], k=1)[0].path == "/p/many/5"
        assert reader.stats().index_kind == "hnsw"
        _fill(store, extra, first=5000)
        assert _numbers(reader, extra[1], k=1) == [5001]
        store.write([row("/p/many/5", extra[2], content="edited")])
        assert set(_numbers(reader, extra[2], k=2)) == {5, 5002}
        assert 5 not in _numbers(reader, table[5], k=5)
        store.write(removed=[f"/p/{'few' if n % 100 == 7 else 'many'}/{n}" for n in range(900)])
        near = _numbers(reader, table[5], k=10)
        assert len(near) == 10
        assert min(near) >= 900


def test_an_index_is_extended_and_renewed(tmp_path: Path) -> None:
    table = vectors(4000)
    with opened(tmp_path / "s", exact_rows=500) as store:
        _fill(store, table[:1000])
        store.prepare()
        _fill(store, table[1000:1500], first=1000)
        store.prepare()
        assert store.stats().index_rows == 1000  # few: compared one by one
        _fill(store, table[1500:], first=1500)
        store.prepare()
        assert store.stats().index_rows == 4000
        store.write(removed=[f"/p/{'few' if n % 100 == 7 else 'many'}/{n}" for n in range(2000)])
        store.prepare()
        assert store.stats().index_rows == 2000  # half of it was dead
        assert _recall(store, table, np.arange(4000) >= 2000) >= 0.99


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "changed", "header", "other store", "rows missing", "rows changed"]
)
def test_an_index_that_cannot_be_trusted_is_not_used_and_made_again(tmp_path: Path, damage: str) -> None:
    path, table = tmp_path / "s", vectors(1000)
    for name in ("s", "other"):
        with opened(tmp_path / name, exact_rows=500) as store:
            _fill(store, table)
            store.prepare()
    folder = index_folder_of(path)
    (file,) = folder.glob("*.bin")
    header = folder / "1.json"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "rows missing":
        next(folder.glob("*.rows")).unlink()
    elif damage in {"changed", "rows changed"}:
        file = file if damage == "changed" else next(folder.glob("*.rows"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "header":
        header.write_text("{}")
    else:
        for other in index_folder_of(tmp_path / "other").iterdir():
            (folder / other.name).write_bytes(other.read_bytes())
    with opened(path, exact_rows=500) as store:
        assert store.stats().index_kind == "scan"
        assert _numbers(store, table[7], k=1) == [7]
        store.prepare()
        assert store.stats().index_kind == "hnsw"
        assert _numbers(store, table[7], k=1) == [7]
    assert len(list(folder.iterdir())) == 3


def test_the_kinds_of_index_follow_size_memory_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert index_kinds(100_000, 256, 1 << 30) == ("ivfpq", "hnsw")
    assert index_kinds(100_000_000, 256, 1 << 30) == ("ivfpq",)
    monkeypatch.setattr(compressed, "is_available", lambda: False)
    assert index_kinds(100_000_000, 256, 1 << 30) == ("hnsw",)
    monkeypatch.setattr(graph, "is_available", lambda: False)
    assert index_kinds(100_000, 256, 1 << 30) == ()


def _clustered(count: int, seed: int, clusters: int = 100, dim: int = 32) -> NDArray[np.float32]:
    centres = vectors(clusters, seed=7, dim=dim)
    members = np.random.default_rng(seed).integers(0, clusters, count)
    return _unit(centres[members] + 0.4 * vectors(count, seed=seed, dim=dim))


def _unit(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(table / np.linalg.norm(table, axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_rows_in_clusters_are_kept_in_lists(tmp_path: Path, dtype: str) -> None:
    """As many as fit into the lists of their clusters; random ones, as in the other tests, get a graph."""
    table, queries = _clustered(9000, 1), _clustered(60, 2)
    between = _unit(_clustered(60, 3) + _clustered(60, 4))
    with opened(tmp_path / "s", dim=32, exact_rows=500, dtype=dtype) as store:
        _fill(store, table[:8000])
        store.prepare()
        _fill(store, table[8000:], first=8000)
        store.prepare()  # into the same lists
        assert (store.stats().index_kind, store.stats().index_rows) == ("ivfpq", 9000)
        stored = np.stack([store.vector(n + 1) for n in range(9000)])
        for some in (queries, between):
            scores = some @ stored.T
            truth = [set(best.tolist()) for best in np.argsort(-scores, axis=1)[:, :10]]
            found = [set(_numbers(store, query)) for query in some]
            many = [{hit.id - 1 for hit in hits} for hits in store.search_many(some)]
            for answers in (found, many):
                assert np.mean([len(one & other) / 10 for one, other in zip(answers, truth, strict=True)]) >= 0.99
        # As many answers as were asked for, however few are in the lists that ten need.
        assert len(_numbers(store, queries[0], k=1500)) == 1500
        store.write(removed=[store.search(queries[0], k=1)[0].path])
        assert len(_numbers(store, queries[0], k=20)) == 20


def test_lists_that_do_not_fit_later_rows_give_way_to_a_graph(tmp_path: Path) -> None:
    with opened(tmp_path / "s", dim=32, exact_rows=500) as store:
        _fill(store, _clustered(8000, 1))
        store.prepare()
        assert store.stats().index_kind == "ivfpq"
        _fill(store, vectors(4000, seed=5, dim=32), first=8000)
        store.prepare()
        assert (store.stats().index_kind, store.stats().index_rows) == ("hnsw", 12_000)


def test_lists_that_fit_badly_are_searched_whole_where_a_graph_finds_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(breadth._BREADTHS, "hnsw", (1,))  # no graph finds 99 % so narrowly
    table = vectors(4000, dim=32)
    with opened(tmp_path / "s", dim=32, exact_rows=500) as store:
        _fill(store, table[:3000])
        store.prepare()
        _fill(store, table[3000:], first=3000)
        store.prepare()
        assert (store.stats().index_kind, store.stats().index_rows) == ("ivfpq", 4000)
        (header,) = index_folder_of(tmp_path / "s").glob("*.json")
        found = msgspec.json.decode(header.read_bytes(), type=IndexHeader)
        assert found.breadth == 3000 // 39  # all of them; FAISS trains a list with so many rows
        queries = vectors(40, seed=9, dim=32)
        right = np.argsort(-(queries @ table.T), axis=1)[:, :10]
        shares = [
            len(set(_numbers(store, query)) & set(best.tolist())) / 10
            for query, best in zip(queries, right, strict=True)
        ]
        assert np.mean(shares) >= 0.99


def test_vectors_that_do_not_fit_into_memory_are_read_block_by_block(tmp_path: Path) -> None:
    table = vectors(ROWS)
    with opened(tmp_path / "s", memory=1000) as store:
        _fill(store, table)
        assert _recall(store, table, np.arange(ROWS) >= 0) == 1
        assert _recall(store, table, np.arange(ROWS) % 10 == 3, Filter(album="tenth")) == 1


def test_more_like_this_leaves_itself_out(tmp_path: Path) -> None:
    table = vectors(50)
    with opened(tmp_path / "s") as store:
        _fill(store, table)
        hit = store.search(table[5], k=1)[0]
        near = store.more_like(hit.id, k=5)
        order = np.argsort(-(table @ table[5]))[1:6]
        assert [int(item.path.rpartition("/")[2]) for item in near] == order.tolist()
        assert store.hit(hit.id) is not None
        np.testing.assert_array_equal(store.vector(hit.id), table[5])
        with pytest.raises(StoreError, match="row 999"):
            store.more_like(999)
        assert store.hit(999) is None


def test_keeping_away_from_a_vector_lowers_what_is_near_it(tmp_path: Path) -> None:
    table = np.eye(DIM, dtype=np.float32)
    mixed = (table[0] + table[1]) / np.sqrt(2).astype(np.float32)
    with opened(tmp_path / "s") as store:
        store.write([row("/pure", table[0] * 0.8 + table[5] * 0.6), row("/mixed", mixed)])
        assert [hit.path for hit in store.search(mixed)] == ["/mixed", "/pure"]
        assert [hit.path for hit in store.search(table[0])] == ["/pure", "/mixed"]
        query = (table[0] + 0.2 * table[1]) / np.linalg.norm(table[0] + 0.2 * table[1])
        assert [hit.path for hit in store.search(query, unlike=table[1])] == ["/pure", "/mixed"]
        assert store.search(table[0], unlike=table[0] * 2, k=2)  # the query's own direction: no division by zero


CAPTIONS = ("a dog on a beach", "two dogs in the snow", "a red boat", "a dog in a red boat", "nothing")


def _captioned(store: Store) -> NDArray[np.float32]:
    table = vectors(len(CAPTIONS))
    store.write(
        [row(f"/{n}", vector, caption=text) for n, (vector, text) in enumerate(zip(table, CAPTIONS, strict=True))]
    )
    return table


def test_words_find_captions_in_any_form_and_no_word_is_an_operator(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        _captioned(store)
        assert {hit.path for hit in store.search(words="dogs")} == {"/0", "/1", "/3"}
        assert store.search(words="red boats")[0].path in {"/2", "/3"}
        for odd in ('"', "NOT", "dog*", "caption:dog", "NEAR(dog boat)", "-dog", "(", "***", "dog OR"):
            store.search(words=odd)
        assert store.search(words="  ") == []


def test_hybrid_search_fuses_both_rankings(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        table = _captioned(store)
        hits = store.search(table[4], words="a red boat", k=5)
        assert {hit.path for hit in hits[:3]} == {"/4", "/2", "/3"}
        assert all(hit.fused is not None for hit in hits)
        by_path = {hit.path: hit for hit in hits}
        assert by_path["/2"].score == pytest.approx(float(table[2] @ table[4]), abs=1e-6)
        assert [hit.fused for hit in hits] == sorted((hit.fused or 0 for hit in hits), reverse=True)


def test_reciprocal_ranks_are_summed() -> None:
    scores = fused([7, 8], [8, 9])
    assert scores == pytest.approx({7: 1 / 61, 8: 1 / 62 + 1 / 61, 9: 1 / 62})


def test_rows_with_an_unwanted_word_are_left_out(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        table = _captioned(store)
        assert {hit.path for hit in store.search(table[0], unlike_words="dog boat")} == {"/4"}
        assert [hit.path for hit in store.search(words="red", unlike_words="dogs")] == ["/2"]


def test_words_keep_to_the_filter(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        store.write([row("/a", vectors(1)[0], caption="a cat", tenant="ann", album="x")])
        store.write([row("/b", vectors(1)[0], caption="a cat", tenant="ann", visibility="hidden")])
        assert store.search(words="cat") == []
        assert [hit.path for hit in store.search(words="cat", filter=Filter(tenant="ann"))] == ["/a"]
        assert store.search(words="cat", filter=Filter(tenant="ann", album="y")) == []


def test_a_store_of_bits_scans_bits_and_rescores(tmp_path: Path) -> None:
    table = vectors(ROWS, dim=256)
    query = vectors(1, seed=8, dim=256)[0]
    with opened(tmp_path / "s", dim=256, dtype="binary") as store:
        _fill(store, table)
        near = vectors(20, seed=8, dim=256) * 0.7 + table[:20] * 0.7
        found = [_numbers(store, vector / np.linalg.norm(vector), k=1)[0] for vector in near]
        assert found == list(range(20))
        assert len(store.search(query, k=10)) == 10
