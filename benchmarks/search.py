"""Searches per second and recall of a store, beside usearch and FAISS used directly.

Run: python -m benchmarks.search --rows 100000 --work FOLDER [--build] [--clusters 5000] [--connectivity 32] [--filters]

Vectors are 256-dimensional, drawn from 1,000 clusters (or `--clusters`) with 32 directions of variation that all
clusters share and a little noise in every dimension: neither uniform, which no embedding is, nor cleanly separated.
There are two kinds of queries, none of them stored: `alike` come from the same source, as a picture does, and
`between` lie halfway between two of these, outside of the clusters, as the vector of a text does. `--build` makes the
store and the peers' indexes in FOLDER and says how long it took; it is apart because it takes long. Everything runs
on one thread. Each peer searches with the smallest breadth that gives a recall@10 of 0.99 for these very queries; the
store knows none of them. No query is asked twice of one way, so that nothing is answered from what was remembered. A
peer without a file is left out; `--connectivity` gives a peer that is built a file of its own. The true answers and
the peers' breadths are kept in FOLDER too: where they are known, next to nothing but what is timed is done.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.store import Filter, Row, Store

DIM, K, ROUNDS, RECALL = 256, 10, 3, 0.99
FILTERED = 100
CLUSTERS, DIRECTIONS, SPREAD, NOISE = 1000, 32, 0.9, 0.3
CONNECTIVITY, EXPANSION_ADD = 16, 128
BREADTHS = (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 2048, 4096)
BLOCK = 50_000
DAY_S = 86_400


def clustered(count: int, seed: int, clusters: int = CLUSTERS) -> NDArray[np.float32]:
    """Return `(count, DIM)` float32 of unit norm from the clusters; `seed` draws the members, not the clusters."""
    space, numbers = np.random.default_rng(0), np.random.default_rng(seed)
    centres = space.normal(size=(clusters, DIM)).astype(np.float32)
    directions = space.normal(size=(DIRECTIONS, DIM)).astype(np.float32) / np.sqrt(DIRECTIONS)
    table = np.empty((count, DIM), dtype=np.float32)
    for first in range(0, count, 100_000):
        size = min(100_000, count - first)
        part = centres[numbers.integers(0, clusters, size)]
        part = part + SPREAD * (numbers.normal(size=(size, DIRECTIONS)).astype(np.float32) @ directions)
        part += NOISE * numbers.normal(size=(size, DIM)).astype(np.float32)
        table[first : first + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return table


def filters(rows: int) -> dict[str, tuple[Filter, NDArray[np.bool_]]]:
    """Return filters by share, and which rows each allows. Row n is in folder n % 1000 and was taken on day n."""
    number = np.arange(rows)
    return {
        "0.1 % (folder)": (Filter(folder="/p/007"), number % 1000 == 7),
        "1 % (album)": (Filter(album="seven"), number % 100 == 7),
        "10 % (time)": (Filter(taken_from=0, taken_until=rows // 10 * DAY_S), number < rows // 10),
    }


def row_for(number: int, vector: NDArray[np.float32]) -> Row:
    """Return row `number` as the filters expect it."""
    return Row(
        path=f"/p/{number % 1000:03}/{number}.jpg",
        sha256=number.to_bytes(32, "little"),
        size_bytes=number,
        mtime_ns=number,
        vector=vector,
        caption=f"picture {number}",
        confidence=0.5,
        album="seven" if number % 100 == 7 else None,
        taken_at=number * DAY_S,
    )


def build(work: Path, rows: int, what: set[str], connectivity: int, clusters: int) -> None:
    """Make the store and the peers' indexes of `what`, and print how long each took."""
    stem = _stem(rows, clusters)
    mark = stem + ("" if connectivity == CONNECTIVITY else f".{connectivity}")
    table = clustered(rows, 1, clusters)
    if "store" in what:
        began = time.perf_counter()
        with Store.open(work / f"{stem}.sqlite", model_version="v", dim=DIM, threads=1) as store:
            for first in range(len(store), rows, BLOCK):
                store.write([row_for(n, table[n]) for n in range(first, min(rows, first + BLOCK))])
            wrote = time.perf_counter()
            cpu = time.process_time()
            store.prepare()
            spent = {"index_s": time.perf_counter() - wrote, "processor_s": time.process_time() - cpu}
            print(json.dumps({"store": rows, "write_s": wrote - began, **spent, "kind": store.stats().index_kind}))
    if "usearch" in what:
        began, cpu = time.perf_counter(), time.process_time()
        index = _usearch(connectivity)
        for first in range(0, rows, BLOCK):
            keys = np.arange(first, min(rows, first + BLOCK), dtype=np.uint64)
            index.add(keys, table[first : first + BLOCK], threads=1)
        index.save(work / f"{mark}.usearch")
        _say_built("usearch", rows, connectivity, began, cpu)
    if "faiss" in what:
        import faiss

        faiss.omp_set_num_threads(1)
        began, cpu = time.perf_counter(), time.process_time()
        flat: Any = faiss.IndexHNSWFlat(DIM, connectivity, faiss.METRIC_INNER_PRODUCT)
        flat.hnsw.efConstruction = EXPANSION_ADD
        flat.add(table)
        faiss.write_index(flat, str(work / f"{mark}.faiss"))
        _say_built("faiss", rows, connectivity, began, cpu)


def _stem(rows: int, clusters: int) -> str:
    return f"{rows}" if clusters == CLUSTERS else f"{rows}-{clusters}"


def _say_built(name: str, rows: int, connectivity: int, began: float, cpu: float) -> None:
    spent = {"index_s": time.perf_counter() - began, "processor_s": time.process_time() - cpu}
    print(json.dumps({name: rows, "connectivity": connectivity, **spent}))


def _usearch(connectivity: int) -> Any:
    import onnxruntime  # noqa: F401 -- before usearch, see pocketlens.runtime.store.graph
    from usearch.index import Index

    return Index(ndim=DIM, metric="ip", dtype="f32", connectivity=connectivity, expansion_add=EXPANSION_ADD)


def truths(table: NDArray[np.float32], queries: NDArray[np.float32], allowed: NDArray[np.bool_]) -> list[set[int]]:
    """Return the numbers of the `K` nearest allowed rows of each query."""
    numbers = np.flatnonzero(allowed)
    best = np.empty((len(queries), 0), dtype=np.float32)
    ids = np.empty((len(queries), 0), dtype=np.int64)
    for first in range(0, len(numbers), BLOCK):
        part = numbers[first : first + BLOCK]
        best = np.concatenate([best, queries @ table[part].T], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(part, (len(queries), len(part)))], axis=1)
        order = np.argpartition(-best, K - 1, axis=1)[:, :K]
        best, ids = np.take_along_axis(best, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return [set(row.tolist()) for row in ids]


Search = Callable[[NDArray[np.float32]], list[set[int]]]
"""The numbers of the rows found for each of some queries."""


def peers(work: Path, stem: str) -> Iterator[tuple[str, Callable[[int], Search]]]:
    """Yield each peer's name and its search for a breadth: of several queries, as it does it itself."""
    import faiss

    faiss.omp_set_num_threads(1)
    for path in sorted(work.glob(f"{stem}.*usearch")):
        yield _name("usearch", path), _by_usearch(path)
    for path in sorted(work.glob(f"{stem}.*faiss")):
        yield _name("FAISS-HNSW", path), _by_faiss(path)


def _name(peer: str, path: Path) -> str:
    return " ".join([peer, *path.stem.split(".")[1:]])


def _by_usearch(path: Path) -> Callable[[int], Search]:
    index = _usearch(CONNECTIVITY)  # the file knows its own
    index.load(path)

    def make(breadth: int) -> Search:
        index.expansion_search = breadth
        return lambda queries: [
            set(row.tolist()) for row in np.atleast_2d(index.search(_one(queries), K, threads=1).keys)
        ]

    return make


def _by_faiss(path: Path) -> Callable[[int], Search]:
    import faiss

    flat: Any = faiss.read_index(str(path))

    def make(breadth: int) -> Search:
        flat.hnsw.efSearch = breadth
        return lambda queries: [set(row.tolist()) for row in flat.search(queries, K)[1]]

    return make


def _one(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    return queries[0] if len(queries) == 1 else queries


def measured(
    search: Search, queries: NDArray[np.float32], truth: list[set[int]], *, at_once: bool = False
) -> tuple[float, float]:
    """Return recall@10 and queries per second of one pass, one query after the other or all in one call."""
    began = time.perf_counter()
    found = search(queries) if at_once else [search(query[None])[0] for query in queries]
    seconds = time.perf_counter() - began
    recall = statistics.mean(len(one & other) / len(other) for one, other in zip(found, truth, strict=True))
    return recall, len(queries) / seconds


def smallest_breadth(make: Callable[[int], Search], queries: NDArray[np.float32], truth: list[set[int]]) -> int:
    """Return the smallest breadth with the recall that is asked for."""
    for breadth in BREADTHS:
        if measured(make(breadth), queries, truth, at_once=True)[0] >= RECALL:
            return breadth
    return BREADTHS[-1]


def questions(queries: int, clusters: int) -> dict[str, NDArray[np.float32]]:
    """Return the queries of each kind: a part for each round one by one, and for each round in one call."""
    alike = clustered(2 * ROUNDS * queries, 2, clusters)
    pairs = clustered(4 * ROUNDS * (queries // 3), 3, clusters).reshape(2, -1, DIM).sum(axis=0)
    return {"alike": alike, "between": pairs / np.linalg.norm(pairs, axis=1, keepdims=True)}


def known_truths(work: Path, rows: int, queries: int, clusters: int) -> dict[str, list[set[int]]]:
    """Return the nearest rows for each kind of query and each filter, from FOLDER where they were computed before."""
    path = work / f"{_stem(rows, clusters)}.{queries}.truth.npz"
    if not path.exists():
        table, asked = clustered(rows, 1, clusters), questions(queries, clusters)
        every = {kind: truths(table, some, np.ones(rows, dtype=bool)) for kind, some in asked.items()}
        for name, (_, allowed) in filters(rows).items():
            every[name] = truths(table, asked["alike"][:FILTERED], allowed)
        tables: dict[str, Any] = {name: np.array([sorted(one) for one in found]) for name, found in every.items()}
        np.savez(path, **tables)
    with np.load(path) as file:
        return {name: [set(one) for one in file[name].tolist()] for name in file.files}


def known_breadths(
    path: Path,
    makers: dict[str, Callable[[int], Search]],
    asked: dict[str, NDArray[np.float32]],
    truth: dict[str, list[set[int]]],
) -> dict[str, dict[str, int]]:
    """Return each peer's breadth for each kind of query, from `path` where it was looked for before."""
    known: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    for kind, some in asked.items():
        of_kind = known.setdefault(kind, {})
        for name in makers.keys() - of_kind.keys():
            of_kind[name] = smallest_breadth(makers[name], some, truth[kind])
    path.write_text(json.dumps(known))
    return known


def compare(work: Path, rows: int, queries: int, clusters: int, *, with_filters: bool) -> None:
    """Print a line for each way of searching; the rounds alternate between them."""
    stem = _stem(rows, clusters)
    asked, truth = questions(queries, clusters), known_truths(work, rows, queries, clusters)
    with Store.open(work / f"{stem}.sqlite", threads=1) as store:
        began = time.perf_counter()
        store.search(asked["alike"][0], k=K)
        print(f"first search of an opened store: {1000 * (time.perf_counter() - began):.0f} ms; {store.stats()}")
        print(store._indexes.held.header)

        def by_store(some: NDArray[np.float32]) -> list[set[int]]:
            answers = [store.search(some[0], k=K)] if len(some) == 1 else store.search_many(some, k=K)
            return [{hit.id - 1 for hit in hits} for hits in answers]

        makers = dict(peers(work, stem))
        breadths = known_breadths(work / f"{stem}.{queries}.breadths.json", makers, asked, truth)
        for kind, some in asked.items():
            _compare_kind(kind, some, truth[kind], by_store, makers, breadths[kind])
        if with_filters:
            for name, (wanted, _) in filters(rows).items():
                _filtered(store, name, wanted, asked["alike"][:FILTERED], truth[name])


def _compare_kind(
    kind: str,
    queries: NDArray[np.float32],
    truth: list[set[int]],
    by_store: Search,
    makers: dict[str, Callable[[int], Search]],
    breadths: dict[str, int],
) -> None:
    part = len(queries) // (2 * ROUNDS)
    for mode, at_once in (("one by one", False), ("in one call", True)):
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in ("store", *makers)}
        for number in range(ROUNDS):
            first = (number + ROUNDS * at_once) * part
            some, right = queries[first : first + part], truth[first : first + part]
            results["store"].append(measured(by_store, some, right, at_once=at_once))
            for name, make in makers.items():
                results[name].append(measured(make(breadths[name]), some, right, at_once=at_once))
        for name, rounds in results.items():
            recall, rate = statistics.mean(one for one, _ in rounds), statistics.median(rate for _, rate in rounds)
            ratio = statistics.median(mine[1] / other[1] for mine, other in zip(results["store"], rounds, strict=True))
            print(
                f"{kind:<8}{mode:<12}{name:<14} recall {recall:.4f}  {rate:7.0f} queries/s  "
                + (f"breadth {breadths[name]:4}  store / it {ratio:.2f}" if name in makers else "")
            )


def _filtered(store: Store, name: str, wanted: Filter, queries: NDArray[np.float32], truth: list[set[int]]) -> None:
    began = time.perf_counter()
    store.search(queries[0], k=K, filter=wanted)
    first_ms = 1000 * (time.perf_counter() - began)
    recall, rate = measured(
        lambda some: [{hit.id - 1 for hit in store.search(some[0], k=K, filter=wanted)}], queries, truth
    )
    print(f"{'filter ' + name:<24} recall {recall:.4f}  {rate:8.0f} queries/s  first {first_ms:.0f} ms")


def main() -> None:
    """Build, or compare what was built."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--build", nargs="?", const="store,usearch,faiss", help="all three, or some by commas")
    parser.add_argument("--clusters", type=int, default=CLUSTERS, help="that the vectors come from")
    parser.add_argument("--connectivity", type=int, default=CONNECTIVITY, help="of the peers that are built")
    parser.add_argument("--filters", action="store_true")
    parser.add_argument("--queries", type=int, default=300, help="a round; a third as many of those between")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    if options.build:
        build(options.work, options.rows, set(options.build.split(",")), options.connectivity, options.clusters)
    else:
        compare(options.work, options.rows, options.queries, options.clusters, with_filters=options.filters)


if __name__ == "__main__":
    main()
