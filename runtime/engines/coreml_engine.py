"""CoreML itself, through coremltools, on macOS 12 and later.

CoreML runs nowhere but on Apple's systems. Elsewhere this engine says so before it reads a graph; what it
hands to a package and what it takes from one (`feed`, `answer`) is checked against packages that
`pocketlens export` saved. Reference: `coremltools.models.MLModel.predict`.
"""

import platform
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines.engine import bundle_graph, graph_failed

__all__ = ["CoremlEngine", "answer", "feed"]

_FIRST_MACOS: Final = 12  # the first whose CoreML predicts with an .mlpackage from Python


class CoremlEngine:
    """Runs CoreML packages; one per role, loaded at its first use. A package has batch 1, so a batch is a loop here.

    Args:
        bundle: the verified bundle.
        graphs: the chosen record of each role.

    Raises:
        EngineError: this is not macOS 12 or later, or coremltools is not installed.
    """

    name = "coreml"

    def __init__(self, bundle: Bundle, graphs: Mapping[Role, GraphRecord]) -> None:
        _check_system(sys.platform, platform.mac_ver()[0])
        try:
            self._models = import_module("coremltools.models")
        except ImportError as error:
            raise EngineError(
                "engine coreml",
                expected="the package coremltools",
                found=str(error),
                remedy="pip install coremltools",
            ) from error
        self._bundle = bundle
        self._graphs = graphs
        self._loaded: dict[Role, Any] = {}
        self._lock = threading.Lock()

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph, row by row; see `Engine.run`."""
        record, path = bundle_graph(self._bundle, self._graphs, role)
        try:
            with self._lock:
                model = self._model(role)
                pictures = picture_inputs(model.get_spec())
                rows = [
                    answer(record, model.predict(feed(record, inputs, row, pictures)))
                    for row in range(len(inputs[record.inputs[0].name]))
                ]
        except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            raise graph_failed(path, f"a {role} graph that runs", error) from error
        return {spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in record.outputs}

    def _model(self, role: Role) -> Any:
        if role not in self._loaded:
            _, path = bundle_graph(self._bundle, self._graphs, role)
            model = self._models.MLModel(str(path))
            if model.__proxy__ is None:  # coremltools keeps the framework's error, and raises it bare at predict
                raise graph_failed(
                    path, "a package that CoreML can load", model._framework_error or RuntimeError("no CoreML")
                )
            self._loaded[role] = model
        return self._loaded[role]


def picture_inputs(spec: Any) -> frozenset[str]:
    """Return the names of the inputs that a package's description declares as pictures."""
    return frozenset(i.name for i in spec.description.input if i.type.WhichOneof("Type") == "imageType")


def feed(record: GraphRecord, inputs: Mapping[str, NDArray[Any]], row: int, pictures: frozenset[str]) -> dict[str, Any]:
    """Return what `MLModel.predict` takes for one row of `inputs`: arrays in the record's shape, or PIL images."""
    fed: dict[str, Any] = {}
    for spec in record.inputs:
        array = inputs[spec.name][row : row + 1]
        if spec.name in pictures:
            fed[spec.name] = Image.fromarray(np.ascontiguousarray(array[0]))
        else:
            # CoreML stops at five axes, so two axes of a cache may be one; no arrays of uint8 either.
            fed[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype).reshape(spec.shape)
    return fed


def answer(record: GraphRecord, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the outputs of one row by the names of the record; in the file, a cache comes out as `cache_out`."""
    named = {spec.name: values.get(spec.name, values.get(f"{spec.name}_out")) for spec in record.outputs}
    missing = [name for name, value in named.items() if value is None]
    if missing:
        raise ValueError(f"no output {', '.join(missing)} among {', '.join(values)}")
    return {
        spec.name: np.asarray(named[spec.name], dtype=spec.dtype).reshape(1, *spec.shape[1:]) for spec in record.outputs
    }


def _check_system(system: str, version: str) -> None:
    if system == "darwin" and int(version.partition(".")[0] or 0) >= _FIRST_MACOS:
        return
    raise EngineError(
        "engine coreml",
        expected=f"macOS {_FIRST_MACOS} or later: CoreML runs on Apple's systems only",
        found=f"{system} {version}".strip(),
        remedy="Choose another engine here: onnxruntime runs everywhere.",
    )
