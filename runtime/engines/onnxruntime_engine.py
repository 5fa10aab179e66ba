"""ONNX Runtime: the default engine on the CPU, and its providers for other hardware."""

import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines.engine import bundle_graph, graph_failed
from pocketlens.runtime.engines.providers import batch_limit, provider_options
from pocketlens.runtime.engines.specs import PROVIDERS, EngineSpec, Provider

__all__ = ["OnnxRuntimeEngine"]

_FATAL_ONLY: Final = 4


class _Opened(NamedTuple):
    """A session and what a run needs: a decode step takes 0.2 ms, and looking these up took a tenth of that.

    Attributes:
        session: ONNX Runtime's.
        own_inputs: the graph's own names, in its order.
        inputs: the record's names, in its order.
        outputs: the record's names, in its order.
        batch_limit: rows that one call may have; `None` for any number.
    """

    session: Any
    own_inputs: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_limit: int | None


class OnnxRuntimeEngine:
    """Runs ONNX graphs; a session per role, made at its first use.

    Args:
        bundle: the verified bundle.
        graphs: the chosen record of each role.
        threads: threads of one call; `None` means one for each physical core.
        provider: what computes; what it cannot do stays on the CPU.

    Raises:
        EngineError: the package is not installed, or has no such provider.
    """

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[Role, GraphRecord],
        *,
        threads: int | None = None,
        provider: Provider = "cpu",
    ) -> None:
        self.name = str(EngineSpec("onnxruntime", provider))
        self._provider = provider
        self._bundle = bundle
        self._graphs = graphs
        self._threads = threads
        self._sessions: dict[Role, _Opened] = {}
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
        self._check_provider(self._ort.get_available_providers())
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
        opened = self._sessions.get(role) or self._session(role)
        try:
            # By position: an ONNX graph cannot give an output the name of an input, as a cache has.
            fed = {own: inputs[name] for own, name in zip(opened.own_inputs, opened.inputs, strict=True)}
            session, limit = opened.session, opened.batch_limit
            values = session.run(None, fed) if limit is None else _in_parts(session, fed, limit)
            return dict(zip(opened.outputs, values, strict=True))
        except self._errors as error:
            _, path = bundle_graph(self._bundle, self._graphs, role)
            raise graph_failed(path, f"a {role} graph that runs", error) from error

    def _session(self, role: Role) -> "_Opened":
        with self._lock:
            if role not in self._sessions:
                self._sessions[role] = self._open(role)
            return self._sessions[role]

    def _open(self, role: Role) -> "_Opened":
        record, path = bundle_graph(self._bundle, self._graphs, role)
        options = self._ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # what goes wrong is raised, not printed
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if self._threads != 1:
            # Each role has a thread pool of its own and they run in turn. By default the pools that
            # wait spin, which takes the cores away from the one that works (and drains a battery).
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = [PROVIDERS["cpu"]]
        if self._provider != "cpu":
            settings = provider_options(self._provider, self._bundle, record)
            providers.insert(0, (PROVIDERS[self._provider], settings))
        try:
            session = self._ort.InferenceSession(str(path), options, providers=providers)
        except self._errors as error:
            raise graph_failed(path, "a graph that ONNX Runtime can load", error) from error
        # Where a provider's libraries or its device are missing, ONNX Runtime goes on without it and says so in
        # its log only.
        self._check_provider(session.get_providers())
        return _Opened(
            session,
            tuple(value.name for value in session.get_inputs()),
            tuple(spec.name for spec in record.inputs),
            tuple(spec.name for spec in record.outputs),
            batch_limit(record) if self._provider == "tensorrt" else None,
        )

    def _check_provider(self, there: list[str]) -> None:
        if PROVIDERS[self._provider] not in there:
            raise EngineError(
                f"engine {self.name}",
                expected=f"ONNX Runtime's {PROVIDERS[self._provider]} and its device",
                found=f"{', '.join(there)}",
                remedy="Install the build of onnxruntime that has it and its drivers, or choose another engine.",
            )


def _in_parts(session: Any, fed: dict[str, NDArray[Any]], limit: int) -> list[NDArray[Any]]:
    """Return the outputs of a batch that is run `limit` rows at a time."""
    rows = len(next(iter(fed.values())))
    parts = [
        session.run(None, {name: array[first : first + limit] for name, array in fed.items()})
        for first in range(0, rows, limit)
    ]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]
