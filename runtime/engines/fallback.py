"""Runs each role on the first engine of its chain that works, and goes on to the next where one fails.

A call that fails is repeated, with the same inputs, on the next engine of the chain. So each call is
answered by one engine alone. The engine that took over keeps the role for the life of this object, and
one event says so. Where no engine of the chain can answer a call, the input may be at fault as well:
the first error is raised and nothing changes.

What this does not survive is an engine that kills the process. `pocketlens tune` tries every graph in a
child process first and keeps those that do so out of the chain.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.core.events import NULL_SINK, EngineFellBack, EventSink
from pocketlens.runtime.engines.engine import Engine, bundle_graph, open_engine
from pocketlens.runtime.engines.specs import EngineSpec

__all__ = ["Choice", "FallbackEngine", "Reason"]

Reason = Literal["unavailable", "failed", "not_finite"]

# Small outputs that tell a broken graph; a cache is large, and a broken one shows in the logits.
_CHECKED: Final = ("embedding", "logits")


class Choice(msgspec.Struct, frozen=True):
    """One way to run one graph.

    Attributes:
        spec: the engine.
        record: the graph.
        threads: CPU threads of one call; `None` lets the engine decide.
    """

    spec: EngineSpec
    record: GraphRecord
    threads: int | None = None


class FallbackEngine:
    """Runs the graphs of one bundle on chains of engines. Safe to call from several threads.

    Args:
        bundle: the verified bundle.
        chains: for each role, how it may be run, best first.
        sink: told of every engine that is given up.
    """

    def __init__(self, bundle: Bundle, chains: Mapping[Role, Sequence[Choice]], *, sink: EventSink = NULL_SINK) -> None:
        self._bundle = bundle
        self._chains = chains
        self._sink = sink
        self._at: dict[Role, int] = dict.fromkeys(chains, 0)
        self._lock = threading.RLock()
        self._engines: dict[tuple[EngineSpec, int | None, str], Engine] = {}
        # Roles that are run in the same way share an engine object.
        self._shared: dict[tuple[EngineSpec, int | None], dict[Role, GraphRecord]] = {}
        for role, chain in chains.items():
            for choice in chain:
                self._shared.setdefault((choice.spec, choice.threads), {}).setdefault(role, choice.record)

    @property
    def name(self) -> str:
        """The engine that runs the image encoder now."""
        return str(self.current("image_encoder").spec)

    def current(self, role: Role) -> Choice:
        """Return how `role` is run now.

        Raises:
            BundleIncomplete: no graph was chosen for this role.
        """
        chain = self._chains.get(role, ())
        if not chain:
            # It raises: no chain has this role.
            bundle_graph(self._bundle, {known: links[0].record for known, links in self._chains.items()}, role)
        return chain[self._at[role]]

    def open(self) -> None:
        """Open the engine of every role, so that what is not installed is found now; graphs load at first use.

        Raises:
            EngineError: no engine of a role's chain is on this machine; it is the first one's error.
        """
        for role in self._chains:
            self._first_that(role, None)

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph; see `Engine.run`. The error is that of the engine that was in charge."""
        self.current(role)
        return self._first_that(role, inputs)

    def _first_that(self, role: Role, inputs: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Return what the first engine that works answers; without inputs it only has to open."""
        chain, at = self._chains[role], self._at[role]
        errors: list[tuple[Reason, EngineError]] = []
        for index in range(at, len(chain)):
            reason: Reason = "unavailable"
            try:
                engine = self._engine(role, chain[index])
                outputs = {}
                if inputs is not None:
                    reason = "failed"
                    outputs = engine.run(role, _shaped(inputs, chain[index].record))
                    reason = "not_finite"
                    _check_finite(role, outputs)
            except EngineError as error:
                errors.append((reason, error))
                continue
            if errors:
                self._replace(role, at, index, errors[0][0])
            return outputs
        raise errors[0][1]

    def _replace(self, role: Role, failed: int, index: int, reason: Reason) -> None:
        with self._lock:
            if self._at[role] != failed:
                return  # another thread met the same failure
            self._at[role] = index
            chain = self._chains[role]
            self._sink.emit(
                EngineFellBack(
                    self._bundle.manifest.model_version,
                    role,
                    str(chain[failed].spec),
                    str(chain[index].spec),
                    reason,
                )
            )

    def _engine(self, role: Role, choice: Choice) -> Engine:
        shared = self._shared[choice.spec, choice.threads]
        alone = shared[role] is not choice.record
        key = (choice.spec, choice.threads, choice.record.path if alone else "")
        with self._lock:
            if key not in self._engines:
                graphs = {role: choice.record} if alone else shared
                self._engines[key] = open_engine(str(choice.spec), self._bundle, graphs, threads=choice.threads)
            return self._engines[key]


def _shaped(inputs: Mapping[str, NDArray[Any]], record: GraphRecord) -> Mapping[str, NDArray[Any]]:
    """Return `inputs` in the shapes of `record`: a cache of CoreML has two axes of the others' in one."""
    shaped = dict(inputs)
    for spec in record.inputs:
        array = shaped.get(spec.name)
        if array is not None and array.ndim != len(spec.shape) and array[:1].size == abs(math.prod(spec.shape)):
            shaped[spec.name] = array.reshape(len(array), *spec.shape[1:])
    return shaped


def _check_finite(role: Role, outputs: Mapping[str, NDArray[Any]]) -> None:
    for name in _CHECKED:
        if name in outputs and not np.isfinite(outputs[name]).all():
            raise EngineError(
                role,
                expected=f"a finite {name}",
                found="NaN or infinity",
                remedy="The graph is broken on this engine: choose another engine or precision.",
            )
