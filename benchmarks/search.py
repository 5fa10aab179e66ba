"""Searches per second and recall of a store, beside usearch and FAISS used directly.

Run: python -m benchmarks.search --rows 100000 --work FOLDER [--build] [--filters]

Vectors are 256-dimensional, drawn from 1,000 clusters with 32 directions of variation that all clusters share and
a little noise in every dimension: neither uniform nor cleanly separated. Queries come from the same source and are
none of the stored vectors. `--build` makes the store and the two indexes in FOLDER and says how long it took; it
is apart because it takes long. Everything runs on one thread, one query at a time. Each peer searches with the
smallest breadth that gives a recall@10 of 0.99; the store chooses its own.
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

DIM, K, QUERIES, ROUNDS, RECALL = 256, 10, 300, 3, 0.99
CLUSTERS, DIRECTIONS, SPREAD, NOISE = 1000, 32, 0.9, 0.3
CONNECTIVITY, EXPANSION_ADD = 16, 128
BREADTHS = (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
BLOCK = 50_000
DAY_S = 86_400


def clustered(count: int, seed: int) -> NDArray[np.float32]:
    """Return `(count, DIM)` float32 of unit norm from the clusters; `seed` draws the members, not the clusters."""
    space, numbers = np.random.default_rng(0), np.random.default_rng(seed)
    centres = space.normal(size=(CLUSTERS, DIM)).astype(np.float32)
    directions = space.normal(size=(DIRECTIONS, DIM)).astype(np.float32) / np.sqrt(DIRECTIONS)
    table = np.empty((count, DIM), dtype=np.float32)
    for first in range(0, count, 100_000):
        size = min(100_000, count - first)
        part = centres[numbers.integers(0, CLUSTERS, size)]
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


def build(work: Path, rows: int, what: set[str]) -> None:
    """Make the store and the peers' indexes of `what`, and print how long each took."""
    table = clustered(rows, 1)
    if "store" in what:
        began = time.perf_counter()
        with Store.open(work / f"{rows}.sqlite", model_version="v", dim=DIM, threads=1) as store:
            for first in range(len(store), rows, BLOCK):
                store.write([row_for(n, table[n]) for n in range(first, min(rows, first + BLOCK))])
            wrote = time.perf_counter()
            store.prepare()
            print(json.dumps({"store": rows, "write_s": wrote - began, "index_s": time.perf_counter() - wrote}))
    if "usearch" in what:
        began = time.perf_counter()
        index = _usearch()
        for first in range(0, rows, BLOCK):
            keys = np.arange(first, min(rows, first + BLOCK), dtype=np.uint64)
            index.add(keys, table[first : first + BLOCK], threads=1)
        index.save(work / f"{rows}.usearch")
        print(json.dumps({"usearch": rows, "index_s": time.perf_counter() - began}))
    if "faiss" in what:
        import faiss

        faiss.omp_set_num_threads(1)
        began = time.perf_counter()
        flat = faiss.IndexHNSWFlat(DIM, CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        flat.hnsw.efConstruction = EXPANSION_ADD
        flat.add(table)
        faiss.write_index(flat, str(work / f"{rows}.faiss"))
        print(json.dumps({"faiss": rows, "index_s": time.perf_counter() - began}))


def _usearch() -> Any:
    import onnxruntime  # noqa: F401 -- before usearch, see pocketlens.runtime.store.graph
    from usearch.index import Index

    return Index(ndim=DIM, metric="ip", dtype="f32", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD)


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


def measured(
    search: Callable[[NDArray[np.float32]], set[int]], queries: NDArray[np.float32], truth: list[set[int]]
) -> tuple[float, float]:
    """Return recall@10 and queries per second of one pass."""
    began = time.perf_counter()
    found = [search(query) for query in queries]
    seconds = time.perf_counter() - began
    recall = statistics.mean(len(one & other) / len(other) for one, other in zip(found, truth, strict=True))
    return recall, len(queries) / seconds


def peers(work: Path, rows: int) -> Iterator[tuple[str, Callable[[int], Callable[[NDArray[np.float32]], set[int]]]]]:
    """Yield each peer's name and its search for a breadth."""
    index = _usearch()
    index.load(work / f"{rows}.usearch")

    def by_usearch(breadth: int) -> Callable[[NDArray[np.float32]], set[int]]:
        index.expansion_search = breadth
        return lambda query: set(index.search(query, K, threads=1).keys.tolist())

    yield "usearch", by_usearch
    import faiss

    faiss.omp_set_num_threads(1)
    flat = faiss.read_index(str(work / f"{rows}.faiss"))

    def by_faiss(breadth: int) -> Callable[[NDArray[np.float32]], set[int]]:
        flat.hnsw.efSearch = breadth
        return lambda query: set(flat.search(query[None], K)[1][0].tolist())

    yield "FAISS-HNSW", by_faiss


def smallest_breadth(
    make: Callable[[int], Callable[[NDArray[np.float32]], set[int]]],
    queries: NDArray[np.float32],
    truth: list[set[int]],
) -> int:
    """Return the smallest breadth with the recall that is asked for."""
    for breadth in BREADTHS:
        if measured(make(breadth), queries, truth)[0] >= RECALL:
            return breadth
    return BREADTHS[-1]


def compare(work: Path, rows: int, *, with_filters: bool) -> None:
    """Print a line for each way of searching; the rounds alternate between them."""
    table, queries = clustered(rows, 1), clustered(QUERIES, 2)
    truth = truths(table, queries, np.ones(rows, dtype=bool))
    exact = table if rows <= 200_000 else None
    ways: dict[str, Callable[[NDArray[np.float32]], set[int]]] = {}
    with Store.open(work / f"{rows}.sqlite", threads=1) as store:
        began = time.perf_counter()
        store.search(queries[0], k=K)
        first_ms = 1000 * (time.perf_counter() - began)
        print(f"first search of an opened store: {first_ms:.0f} ms; {store.stats().index_kind}")
        ways["store"] = lambda query: {hit.id - 1 for hit in store.search(query, k=K)}
        # What the graph costs and what reading and checking the rows of an answer adds: the peers do only the first.
        held = store._indexes.held
        if held.index is not None and held.header is not None:
            index, breadth = held.index, held.header.breadth
            ways["  its index alone"] = lambda query: set((index.search(query, K, breadth) - 1).tolist())
        makers = dict(peers(work, rows))
        breadths = {name: smallest_breadth(make, queries, truth) for name, make in makers.items()}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, *makers)}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                results[name].append(measured(way, queries, truth))
            for name, make in makers.items():
                results[name].append(measured(make(breadths[name]), queries, truth))
        if exact is not None:
            scan = measured(lambda q: set(np.argpartition(exact @ q, -K)[-K:].tolist()), queries[:50], truth[:50])
            print(f"{'numpy, every vector':<24} recall {scan[0]:.4f}  {scan[1]:8.0f} queries/s")
        for name, rounds in results.items():
            rate = statistics.median(rate for _, rate in rounds)
            breadth = f"breadth {breadths[name]}" if name in breadths else ""
            print(f"{name:<24} recall {rounds[0][0]:.4f}  {rate:8.0f} queries/s  {breadth}")
        rate_of = {name: statistics.median(rate for _, rate in rounds) for name, rounds in results.items()}
        for name in makers:
            print(f"store / {name}: {rate_of['store'] / rate_of[name]:.2f}")
        if with_filters:
            for name, (wanted, allowed) in filters(rows).items():
                _filtered(store, name, wanted, queries[:100], truths(table, queries[:100], allowed))


def _filtered(store: Store, name: str, wanted: Filter, queries: NDArray[np.float32], truth: list[set[int]]) -> None:
    began = time.perf_counter()
    store.search(queries[0], k=K, filter=wanted)
    first_ms = 1000 * (time.perf_counter() - began)
    recall, rate = measured(
        lambda query: {hit.id - 1 for hit in store.search(query, k=K, filter=wanted)}, queries, truth
    )
    print(f"{'filter ' + name:<24} recall {recall:.4f}  {rate:8.0f} queries/s  first {first_ms:.0f} ms")


def main() -> None:
    """Build, or compare what was built."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--build", nargs="?", const="store,usearch,faiss", help="all three, or some by commas")
    parser.add_argument("--filters", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    if options.build:
        build(options.work, options.rows, set(options.build.split(",")))
    else:
        compare(options.work, options.rows, with_filters=options.filters)


if __name__ == "__main__":
    main()
