"""Names of engines: what may stand in `engine=`, what each runs, and which are on this machine.

====================== ============================================== =========================
name                   what runs                                      graphs of the bundle
====================== ============================================== =========================
`onnxruntime`          ONNX Runtime on the CPU                        `onnxruntime`
`onnxruntime:cuda`     its CUDA provider                              `onnxruntime`
`onnxruntime:tensorrt` its TensorRT provider                          `tensorrt`, `onnxruntime`
`onnxruntime:coreml`   its CoreML provider                            `onnxruntime`
`onnxruntime:qnn`      its QNN provider (Qualcomm's NPU)              `onnxruntime`
`executorch`           ExecuTorch on the CPU                          `executorch`
`coreml`               CoreML itself, on macOS                        `coreml`
====================== ============================================== =========================
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from pocketlens.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pocketlens.core.bundle import GraphRecord

__all__ = [
    "ENGINES",
    "PROVIDERS",
    "EngineName",
    "EngineSpec",
    "Provider",
    "parse_engine",
    "parse_engines",
    "specs_here",
]

EngineName = Literal["onnxruntime", "executorch", "coreml"]
ENGINES: Final[tuple[EngineName, ...]] = ("onnxruntime", "executorch")
"""Engines that run on every system. CoreML graphs are in bundles too, but run on Apple devices only."""

Provider = Literal["cpu", "cuda", "tensorrt", "coreml", "qnn"]
PROVIDERS: "Final[Mapping[Provider, str]]" = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
"""What ONNX Runtime calls its providers (https://onnxruntime.ai/docs/execution-providers)."""

_KNOWN: Final = (*get_args(EngineName), *(f"onnxruntime:{provider}" for provider in PROVIDERS))


class EngineSpec(msgspec.Struct, frozen=True):
    """An engine and, for ONNX Runtime, its provider. `str()` gives the name that `parse_engine` reads."""

    engine: EngineName
    provider: Provider = "cpu"

    def __str__(self) -> str:
        return self.engine if self.provider == "cpu" else f"{self.engine}:{self.provider}"

    def runs(self, record: "GraphRecord") -> bool:
        """Return whether `record` is made for this engine."""
        return record.engine == self.engine or (record.engine == "tensorrt" and self.provider == "tensorrt")

    @property
    def on_cpu(self) -> bool:
        """Whether the number of CPU threads decides its speed."""
        return self.engine != "coreml" and self.provider == "cpu"


def parse_engine(name: str) -> EngineSpec:
    """Return the engine called `name`; `onnxruntime:cpu` is `onnxruntime`.

    Raises:
        EngineError: no such engine.
    """
    for engine in get_args(EngineName):
        if name == engine:
            return EngineSpec(engine)
    for provider in PROVIDERS:
        if name == f"onnxruntime:{provider}":
            return EngineSpec("onnxruntime", provider)
    raise EngineError(
        f"engine {name!r}",
        expected=f"one of {', '.join(_KNOWN)}",
        found="no such engine",
        remedy="Leave the engine out to take the default.",
    )


def parse_engines(names: str) -> tuple[EngineSpec, ...]:
    """Return the engines in `names`, joined by commas, in that order: the first one that works is meant.

    Raises:
        EngineError: one of them does not exist.
    """
    return tuple(dict.fromkeys(parse_engine(name.strip()) for name in names.split(",")))


def specs_here() -> tuple[EngineSpec, ...]:
    """Return every engine and provider whose package is installed here, the CPU's first.

    That a provider is in the package does not say that its device is in the machine: that shows when
    a graph is opened.
    """
    found = []
    if find_spec("onnxruntime") is not None:
        there = set(import_module("onnxruntime").get_available_providers())
        found += [EngineSpec("onnxruntime", provider) for provider, name in PROVIDERS.items() if name in there]
    if find_spec("executorch") is not None:
        found.append(EngineSpec("executorch"))
    if sys.platform == "darwin" and find_spec("coremltools") is not None:
        found.append(EngineSpec("coreml"))
    return tuple(found)
