"""ONNX Runtime on the CPU: the default engine."""

import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines.engine import EngineName, bundle_graph, graph_failed

__all__ = ["OnnxRuntimeEngine"]

_FATAL_ONLY: Final = 4


class OnnxRuntimeEngine:
    """Runs ONNX graphs; a session per role, made at its first use.

    Args:
        bundle: the verified bundle.
        graphs: the chosen record of each role.
        threads: threads of one call; `None` means one for each physical core.

    Raises:
        EngineError: the package is not installed.
    """

    name: EngineName = "onnxruntime"

    def __init__(self, bundle: Bundle, graphs: Mapping[Role, GraphRecord], *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._graphs = graphs
        self._threads = threads
        self._sessions: dict[Role, Any] = {}
        self._lock = threading.Lock()
        try:
            # Not an import statement: a bundle that is run by another engine needs no onnxruntime.
            self._ort = import_module("onnxruntime")
        except ImportError as error:
            raise EngineError(
                "engine onnxruntime",
                expected="the package onnxruntime",
                found=str(error),
                remedy="pip install pocketlens (onnxruntime comes with it).",
            ) from error
        # ONNX Runtime's exceptions share no base below Exception, so all of them are named here.
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        kinds = (value for value in vars(state).values() if isinstance(value, type))
        self._errors: tuple[type[Exception], ...] = (
            *(kind for kind in kinds if issubclass(kind, Exception)),
            KeyError,  # an input of the record is absent
            ValueError,  # the graph has other inputs or outputs than its record
            RuntimeError,
        )

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph; see `Engine.run`."""
        record, path = bundle_graph(self._bundle, self._graphs, role)
        session = self._session(role)
        try:
            # By position: an ONNX graph cannot give an output the name of an input, as a cache has.
            own = [value.name for value in session.get_inputs()]
            fed = dict(zip(own, (inputs[spec.name] for spec in record.inputs), strict=True))
            values = session.run(None, fed)
            return dict(zip((spec.name for spec in record.outputs), values, strict=True))
        except self._errors as error:
            raise graph_failed(path, f"a {role} graph that runs", error) from error

    def _session(self, role: Role) -> Any:
        with self._lock:
            if role not in self._sessions:
                self._sessions[role] = self._open(role)
            return self._sessions[role]

    def _open(self, role: Role) -> Any:
        _, path = bundle_graph(self._bundle, self._graphs, role)
        options = self._ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # what goes wrong is raised, not printed
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if self._threads != 1:
            # Each role has a thread pool of its own and they run in turn. By default the pools that
            # wait spin, which takes the cores away from the one that works (and drains a battery).
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise graph_failed(path, "a graph that ONNX Runtime can load", error) from error
