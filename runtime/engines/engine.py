"""What every inference engine does, and how one is opened by name.

Letters in this folder: `B` is the batch, always axis 0 of every input and every output.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pocketlens.core.errors import BundleIncomplete, EngineError
from pocketlens.runtime.engines.specs import parse_engine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pocketlens.core.bundle import Bundle, GraphRecord, Role

__all__ = ["Engine", "bundle_graph", "graph_failed", "open_engine"]


class Engine(Protocol):
    """Runs the graphs of one bundle. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """What it is called in `engine=`; see `pocketlens.runtime.engines.specs`."""
        ...

    def run(self, role: "Role", inputs: "Mapping[str, NDArray[Any]]") -> "dict[str, NDArray[Any]]":
        """Run the graph of `role` and return its outputs by name, in the order of the record.

        Args:
            role: which graph; it is loaded at its first use.
            inputs: arrays by input name, all with the same number of rows B.

        Raises:
            BundleIncomplete: no graph was chosen for this role.
            EngineError: the graph cannot be loaded, or failed while running.
        """
        ...


def open_engine(
    name: str,
    bundle: "Bundle",
    graphs: "Mapping[Role, GraphRecord]",
    *,
    threads: int | None = None,
) -> Engine:
    """Return the engine called `name` for the chosen `graphs` of `bundle`.

    Args:
        name: an engine, and for ONNX Runtime its provider; see `pocketlens.runtime.engines.specs`.
        bundle: the verified bundle that the graphs belong to.
        graphs: one record per role that will be run.
        threads: CPU threads of one call; `None` lets the engine decide.

    Raises:
        EngineError: no such engine, its package is not installed, or the package has no such provider.
        ValueError: `threads` is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    spec = parse_engine(name)
    if spec.engine == "onnxruntime":
        from pocketlens.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(bundle, graphs, threads=threads, provider=spec.provider)
    if spec.engine == "coreml":
        from pocketlens.runtime.engines.coreml_engine import CoremlEngine

        return CoremlEngine(bundle, graphs)
    from pocketlens.runtime.engines.executorch_engine import ExecutorchEngine

    return ExecutorchEngine(bundle, graphs, threads=threads)


def bundle_graph(bundle: "Bundle", graphs: "Mapping[Role, GraphRecord]", role: "Role") -> "tuple[GraphRecord, Path]":
    """Return the chosen record of `role` and the path of its file.

    Raises:
        BundleIncomplete: no graph was chosen for this role.
    """
    record = graphs.get(role)
    if record is None:
        raise BundleIncomplete(
            f"bundle {bundle.root}",
            expected=f"a {role} graph",
            found=f"graphs for {', '.join(sorted(graphs)) or 'nothing'}",
            remedy="Export the bundle with this task, or ask for one that it has.",
        )
    return record, bundle.path(record)


def graph_failed(path: "Path", expected: str, error: Exception) -> EngineError:
    """Return the error for a graph that does not load or run; the first 300 characters say why."""
    return EngineError(
        f"graph {path}",
        expected=expected,
        found=f"{type(error).__name__}: {str(error)[:300]}",
        remedy="Export the bundle again with this version of the engine, or choose another engine.",
    )
