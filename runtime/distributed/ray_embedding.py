"""Embeds the pictures of a source as a Ray Data job: every worker holds a lens, the caller writes the vectors.

Only references travel to the workers (see `pocketlens.runtime.vectors.items`), and vectors travel back, so
the pictures and the bundle must be at the same paths on every machine. Ray restarts a worker that died
and gives its batches to another one; a result is only handed on when its number is the next one, so
nothing is lost and nothing comes twice, whatever happens to a worker.

Ray's usage statistics are switched off before Ray is imported, its dashboard is not started.
"""

import contextlib
import logging
import os
from collections.abc import Generator, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from pocketlens.core import errors
from pocketlens.core.errors import EngineError, PictureError, PocketlensError
from pocketlens.runtime.lens import Lens, load
from pocketlens.runtime.results import ReadEmbedding, Refusal
from pocketlens.runtime.vectors.items import Item, read_item
from pocketlens.runtime.vectors.writing import Embedding

__all__ = ["EmbeddingWorker", "embed_on_ray"]

_ROWS_A_BLOCK: Final = 64
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Item).decode


class EmbeddingWorker:
    """What runs in each worker: a lens, opened once, with the first batch.

    An error of ours is an answer like any other: what a worker raises, Ray wraps, repeats and hides.

    Args:
        bundle: its folder, on this worker's machine.
        options: of `pocketlens.runtime.load`.
        max_pixels: of `Lens.embed_images`.
    """

    def __init__(self, bundle: str, options: dict[str, Any], max_pixels: int | None) -> None:
        self._bundle = bundle
        self._options = options
        self._max_pixels = max_pixels
        self._lens: Lens | None = None

    def __call__(self, table: Any) -> Any:
        """Return an Arrow table of results for one of references, whose columns are `number` and `item`."""
        arrow = import_module("pyarrow")
        items = [_DECODE(value) for value in table["item"].to_pylist()]
        try:
            rows = [_row(result) for result in self._embedded(items)]
        except PocketlensError as error:
            words = [type(error).__name__, error.what, error.expected, error.found, error.remedy]
            rows = [{"vector": None, "sha256": None, "refused": None, "failed": words}] * len(items)
        types = {
            "vector": arrow.binary(),
            "sha256": arrow.string(),
            "refused": arrow.list_(arrow.string()),
            "failed": arrow.list_(arrow.string()),
        }
        columns = {name: arrow.array([row[name] for row in rows], kind) for name, kind in types.items()}
        return arrow.table({"number": table["number"], **columns})

    def _embedded(self, items: list[Item]) -> Iterator[ReadEmbedding]:
        if self._lens is None:
            self._lens = load(self._bundle, **self._options)
        max_bytes = self._lens.bundle.manifest.preprocess.max_bytes
        return self._lens.embed_read(items, lambda item: read_item(item, max_bytes), max_pixels=self._max_pixels)


def embed_on_ray(
    bundle: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    max_pixels: int | None = None,
    decode: Literal["in_process", "worker"] = "in_process",
    workers: int | None = None,
) -> Embedding:
    """Return what embeds items on a Ray cluster: the one of `RAY_ADDRESS`, or else one on this machine.

    Args:
        bundle: its folder, the same on every machine.
        engine: of `pocketlens.runtime.load`.
        precision: likewise.
        threads: CPU threads of each worker, which Ray counts as its CPUs; 1 by default.
        max_pixels: of `Lens.embed_images`.
        decode: of `pocketlens.runtime.load`.
        workers: how many; by default as many as the cluster has room for.

    Raises:
        EngineError: Ray is not installed.
    """
    _ray()
    options = {"engine": engine, "precision": precision, "threads": threads or 1, "decode": decode}
    root = str(Path(bundle).resolve())

    def embedding(items: Iterator[Item]) -> Generator[ReadEmbedding]:
        ray, data = _ray()
        with _cluster(ray):
            room = workers or max(int(ray.cluster_resources().get("CPU", 1)) // (threads or 1), 1)
            results = _job(ray, data, items, (root, options, max_pixels), workers=room, threads=threads or 1)
            try:
                yield from results
            except (ray.exceptions.RayError, import_module("ray.data.exceptions").SystemException) as error:
                raise _failed(error) from error

    return embedding


def _job(
    ray: Any, data: Any, items: Iterator[Item], arguments: tuple[Any, ...], *, workers: int, threads: int
) -> Generator[ReadEmbedding]:
    blocks = list(_blocks(items))
    if not blocks:
        return
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray Data starts a worker that died anew, and has what it was at done again, however often.
    done = data.from_arrow(blocks).map_batches(
        EmbeddingWorker,
        fn_constructor_args=arguments,
        batch_size=_ROWS_A_BLOCK,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=workers),
        num_cpus=threads,
    )
    expected = 0
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            if row["number"] != expected:
                raise _out_of_order(expected, row["number"])
            yield _result(row)
            expected += 1
    if expected != sum(len(block) for block in blocks):
        raise _out_of_order(expected, None)


def _blocks(items: Iterator[Item]) -> Iterator[Any]:
    arrow = import_module("pyarrow")
    first = 0
    while part := list(islice(items, _ROWS_A_BLOCK)):
        numbers = arrow.array(range(first, first + len(part)), arrow.int64())
        yield arrow.table({"number": numbers, "item": arrow.array(map(_ENCODE, part), arrow.binary())})
        first += len(part)


def _row(result: ReadEmbedding) -> dict[str, Any]:
    if isinstance(result.outcome, Refusal):
        error = result.outcome.error
        reason = [error.kind, error.what, error.expected, error.found, error.remedy]
        return {"vector": None, "sha256": result.sha256, "refused": reason, "failed": None}
    vector = result.outcome.astype("<f4").tobytes()
    return {"vector": vector, "sha256": result.sha256, "refused": None, "failed": None}


def _result(row: dict[str, Any]) -> ReadEmbedding:
    if row["failed"] is not None:
        name, what, expected, found, remedy = row["failed"]
        kind = getattr(errors, name, EngineError)
        raise kind(what, expected=expected, found=found, remedy=remedy)
    if row["refused"] is None:
        return ReadEmbedding(np.frombuffer(row["vector"], "<f4"), row["sha256"])
    kind, what, expected, found, remedy = row["refused"]
    error = PictureError(what, kind=kind, expected=expected, found=found, remedy=remedy)
    return ReadEmbedding(Refusal(row["number"], what, error), row["sha256"])


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the cluster of the environment, or start one here; end what was started."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(
            "the Ray cluster",
            expected="a cluster at the address in RAY_ADDRESS, or room for one on this machine",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="Start it with `ray start`, or unset RAY_ADDRESS.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> tuple[Any, Any]:
    # Before the import: Ray asks a server of its makers to count its users otherwise.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise EngineError(
            "workers ray",
            expected="the package ray with its data library",
            found=str(error),
            remedy="pip install 'pocketlens[ray]'",
        ) from error


def _failed(error: Exception) -> EngineError:
    return EngineError(
        "the Ray job",
        expected="workers that answer",
        found=f"{type(error).__name__}: {str(error)[-300:]}",
        remedy="Look into Ray's logs; what was written is kept, and the same command goes on.",
    )


def _out_of_order(expected: int, found: int | None) -> EngineError:
    return EngineError(
        "the Ray job",
        expected=f"the result of picture {expected}",
        found="the end" if found is None else f"that of picture {found}",
        remedy="Run the same command again; what was written is kept.",
    )
