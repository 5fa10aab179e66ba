"""Runs the targets over the graphs: one job per target and role, here or in worker processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from pocketlens.core.bundle import ROLES, Role
from pocketlens.core.errors import ExportError, PocketlensError
from pocketlens.distill.students.student import load_student
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.recipe import split_variant
from pocketlens.export.reference import Feed
from pocketlens.export.targets import open_target

__all__ = ["graph_path", "lower"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


class _Job(NamedTuple):
    student_folder: Path
    target: str
    role: Role
    paths: dict[str, Path]
    feeds: list[Feed]


def graph_path(variant: str, role: Role) -> str:
    """Return the path of a graph relative to its bundle."""
    return f"graphs/{variant}/{role}{open_target(split_variant(variant)[0]).suffix}"


def lower(
    student_folder: Path,
    roots: Mapping[str, Path],
    feeds: Mapping[Role, list[Feed]],
    *,
    workers: int,
    progress: Progress,
) -> None:
    """Write all graphs of all variants.

    Args:
        student_folder: see `pocketlens.distill.students.student`.
        roots: by variant, the folder under which `graph_path` of each of its graphs is written.
        feeds: calibration inputs by role.
        workers: processes; 0 stays in this one. More start by "spawn": a script that calls this needs
            the usual `if __name__ == "__main__"`.
        progress: called after each job.

    Raises:
        ExportError: a graph cannot be produced for a target; names both and says why.
    """
    jobs = _jobs(student_folder, roots, feeds)
    for done, job in enumerate(_run(jobs, workers), start=1):
        progress(f"{job.target} {job.role}", done, len(jobs))


def _jobs(student_folder: Path, roots: Mapping[str, Path], feeds: Mapping[Role, list[Feed]]) -> list[_Job]:
    by_target: dict[str, list[str]] = {}
    for variant in roots:
        by_target.setdefault(split_variant(variant)[0], []).append(variant)
    jobs = []
    # The longest first, so that workers finish together.
    for target in sorted(by_target, key=("executorch", "coreml", "onnx").index):
        for role in ROLES:
            paths = {split_variant(v)[1]: roots[v] / graph_path(v, role) for v in by_target[target]}
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            jobs.append(_Job(student_folder, target, role, paths, feeds[role] if "int8" in paths else []))
    return jobs


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[_Job]:
    if workers == 0:
        for job in jobs:
            _lower(job)
            yield job
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        waiting: dict[Future[None], _Job] = {pool.submit(_lower, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BrokenProcessPool as error:
            raise ExportError(
                "export worker",
                expected="a process that lives until its graphs are lowered",
                found="one that was killed, most likely for want of memory",
                remedy="Export with workers = 0, which lowers one graph after the other.",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _lower(job: _Job) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        open_target(job.target).export(_graphs(job.student_folder)[job.role], job.paths, job.feeds)
    except (PocketlensError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"{job.target} graph {job.role}",
            expected=f"a graph that can be lowered to {', '.join(job.paths)}",
            found=f"{type(error).__name__}: {str(error).strip()[:500]}",
            remedy="Leave this target out of the recipe's variants, or choose another backbone.",
        ) from error
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _graphs(student_folder: Path) -> dict[Role, Graph]:
    return student_graphs(load_student(student_folder)[0])
