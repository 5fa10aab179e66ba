"""ExecuTorch on the CPU: the engine that phones run, here to check bundles and to measure them.

The one file of the runtime that loads torch: ExecuTorch's own Python runtime is written on top of
it and takes and returns torch tensors, so whoever installed `pocketlens[executorch]` has torch.
It is loaded by name at the first use of this engine, never by an import statement, so that the rest
of the runtime stays free of it (import-linter and a test hold that).
"""

import threading
import warnings
import weakref
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines.engine import bundle_graph, graph_failed

__all__ = ["ExecutorchEngine"]

_METHOD: Final = "forward"

# One for all engines of this process, as their thread pool is. A loaded method owns its planned memory, so
# two of its calls must not overlap.
_LOCK: Final = threading.Lock()
# A loaded method keeps a pointer to the pool that it was loaded with: to reset the pool under it is a crash
# (SIGSEGV and SIGABRT were seen with 1.5.1). So whoever resets it makes all others forget their methods first.
_OPEN: "Final[weakref.WeakSet[ExecutorchEngine]]" = weakref.WeakSet()


class ExecutorchEngine:
    """Runs ExecuTorch programs; one per role, loaded at its first use.

    The programs have batch 1 in their memory plan, so a batch is a loop here.

    Args:
        bundle: the verified bundle.
        graphs: the chosen record of each role.
        threads: size of ExecuTorch's thread pool. There is one pool for the whole process: engines of different
            sizes that take turns load their programs anew at each turn.

    Raises:
        EngineError: the package is not installed.
    """

    name = "executorch"

    def __init__(self, bundle: Bundle, graphs: Mapping[Role, GraphRecord], *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._graphs = graphs
        self._methods: dict[Role, Any] = {}
        try:
            with warnings.catch_warnings():
                # Said at every import, about a version that pocketlens pins.
                warnings.filterwarnings("ignore", "This API is experimental")
                self._torch = import_module("torch")
                self._runtime = import_module("executorch.runtime")
                # Registers the operators of quantized graphs.
                import_module("executorch.kernels.quantized")
        except ImportError as error:
            raise EngineError(
                "engine executorch",
                expected="the package executorch",
                found=str(error),
                remedy="pip install 'pocketlens[executorch]'",
            ) from error
        self._threads = threads
        _OPEN.add(self)

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph, row by row; see `Engine.run`."""
        record, path = bundle_graph(self._bundle, self._graphs, role)
        names = [output.name for output in record.outputs]
        try:
            arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in record.inputs]
            with _LOCK:
                _fit_pool(self._threads)
                method = self._method(role)
                rows = [
                    self._execute(method, [array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))
                ]
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise graph_failed(path, f"a {role} graph that runs", error) from error
        return {name: np.concatenate([row[index] for row in rows]) for index, name in enumerate(names)}

    def forget(self) -> None:
        """Drop the loaded programs; each is loaded again at its next use. The caller holds this module's lock."""
        self._methods.clear()

    def _execute(self, method: Any, row: list[NDArray[Any]]) -> list[NDArray[Any]]:
        # Copies on both sides: torch refuses to wrap read-only arrays quietly, and the next call
        # overwrites the memory that the outputs of this one live in.
        tensors = [self._torch.from_numpy(array.copy()) for array in row]
        return [output.numpy().copy() for output in method.execute(tensors)]

    def _method(self, role: Role) -> Any:
        if role not in self._methods:
            _, path = bundle_graph(self._bundle, self._graphs, role)
            try:
                program = self._runtime.Runtime.get().load_program(
                    path, verification=self._runtime.Verification.InternalConsistency
                )
                # The method alone does not keep its program alive.
                self._methods[role] = (program, program.load_method(_METHOD))
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise graph_failed(path, "a program that ExecuTorch can load", error) from error
        return self._methods[role][1]


def _fit_pool(threads: int | None) -> None:
    """Give ExecuTorch's pool this size, unless it has it; the caller holds `_LOCK`."""
    if threads is None:
        return
    library = import_module("executorch.extension.pybindings.portable_lib")
    if library._threadpool_get_thread_count() != threads:
        for engine in tuple(_OPEN):
            engine.forget()
        library._unsafe_reset_threadpool(threads)
