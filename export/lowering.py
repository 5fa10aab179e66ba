"""Runs the targets over the graphs: one job per target and role, here or in worker processes."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import torch

from pocketlens.core.bundle import Role
from pocketlens.core.errors import ExportError, PocketlensError
from pocketlens.export.delegation import Delegation
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.recipe import needs_calibration, split_variant
from pocketlens.export.reference import Feed
from pocketlens.export.sources.opening import open_source
from pocketlens.export.targets import open_target

__all__ = ["Lowered", "Progress", "graph_path", "lower"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

_SLOWEST_FIRST: Final = (
    "executorch",
    "executorch_vulkan",
    "executorch_coreml",
    "litert",
    "coreml",
    "coremlstate",
    "tensorrt",
    "onnx",
)


class Lowered(NamedTuple):
    """What became of one graph: its delegation if it has one, or why it could not be written."""

    variant: str
    role: Role
    delegation: Delegation | None = None
    error: PocketlensError | None = None


class _Job(NamedTuple):
    source: str
    target: str
    role: Role
    paths: dict[str, Path]
    feeds: list[Feed]
    keep_going: bool


def graph_path(variant: str, role: Role) -> str:
    """Return the path of a graph relative to its bundle."""
    return f"graphs/{variant}/{role}{open_target(split_variant(variant)[0]).suffix}"


def lower(
    source: str,
    roots: Mapping[str, Path],
    feeds: Mapping[Role, list[Feed]],
    *,
    workers: int,
    progress: Progress,
    keep_going: bool = False,
    watch: Callable[[Lowered], None] = lambda lowered: None,
) -> None:
    """Write all graphs of all variants.

    Args:
        source: see `pocketlens.export.sources.opening`.
        roots: by variant, the folder under which `graph_path` of each of its graphs is written.
        feeds: calibration inputs by role.
        workers: processes; 0 stays in this one. More start by "spawn": a script that calls this needs
            the usual `if __name__ == "__main__"`.
        progress: called after each job.
        keep_going: a graph that fails leaves no file, is told to `watch` and stops no other.
        watch: called once for each graph that is done.

    Raises:
        ExportError: a graph cannot be produced for a target; names both and says why. With
            `keep_going` never.
        StorageFull: no space left.
    """
    jobs = _jobs(source, roots, feeds, keep_going)
    for done, (job, results) in enumerate(_run(jobs, workers), start=1):
        for result in results:
            watch(result)
        progress(f"{job.target} {job.role}", done, len(jobs))


def _jobs(source: str, roots: Mapping[str, Path], feeds: Mapping[Role, list[Feed]], keep_going: bool) -> list[_Job]:
    by_target: dict[str, list[str]] = {}
    for variant in roots:
        by_target.setdefault(split_variant(variant)[0], []).append(variant)
    jobs = []
    # The longest first, so that workers finish together.
    for target in sorted(by_target, key=_SLOWEST_FIRST.index):
        for role in feeds:
            paths = {split_variant(v)[1]: roots[v] / graph_path(v, role) for v in by_target[target]}
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            used = feeds[role] if any(map(needs_calibration, paths)) else []
            jobs.append(_Job(source, target, role, paths, used, keep_going))
    return jobs


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, list[Lowered]]]:
    if workers == 0:
        for job in jobs:
            yield job, _lower(job)
        return
    waiting = list(jobs)
    try:
        for job, results in _run_in_pool(waiting, workers):
            waiting.remove(job)
            yield job, results
    except BrokenProcessPool as error:
        if not jobs[0].keep_going:
            raise _worker_died() from error
    # Somebody killed a worker, which spoils its whole pool: what was not done gets a pool for itself.
    for job in waiting:
        try:
            (done,) = _run_in_pool([job], 1)
            yield done
        except BrokenProcessPool:
            _remove(job.paths.values())
            yield job, [Lowered(f"{job.target}-{p}", job.role, error=_worker_died()) for p in job.paths]


def _run_in_pool(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, list[Lowered]]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        running: dict[Future[list[Lowered]], _Job] = {pool.submit(_lower, job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _worker_died() -> ExportError:
    return ExportError(
        "export worker",
        expected="a process that lives until its graphs are lowered",
        found="one that was killed, most likely for want of memory",
        remedy="Export with workers = 0, which lowers one graph after the other.",
    )


def _lower(job: _Job) -> list[Lowered]:
    try:
        return _write(job, job.paths)
    except ExportError as error:
        if not job.keep_going:
            raise
        _remove(job.paths.values())
        if len(job.paths) == 1:
            return [Lowered(f"{job.target}-{precision}", job.role, error=error) for precision in job.paths]
    # The precisions of a job share its capture. Which of them failed is seen when each is alone.
    return [result for p, path in job.paths.items() for result in _lower(job._replace(paths={p: path}))]


def _write(job: _Job, paths: Mapping[str, Path]) -> list[Lowered]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        graph = _graphs(job.source)[job.role]
        taken = open_target(job.target).export(graph, paths, job.feeds) or {}
    except (PocketlensError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"{job.target} graph {job.role}",
            expected=f"a graph that can be lowered to {', '.join(paths)}",
            found=f"{type(error).__name__}: {str(error).strip()[:500]}",
            remedy="Leave this target out of the recipe's variants, or choose another backbone.",
        ) from error
    finally:
        torch.set_num_threads(threads)
    return [Lowered(f"{job.target}-{precision}", job.role, taken.get(precision)) for precision in paths]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _graphs(source: str) -> dict[Role, Graph]:
    return student_graphs(open_source(source).model)
