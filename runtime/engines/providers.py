"""With which options ONNX Runtime's providers run a graph.

A graph's record may bring options of its own (`GraphRecord.settings`), and a bundle may come from anybody.
TensorRT's options can name shared libraries to load and files to write, so only those that say how to
compute are taken from a record (`ALLOWED`); where the built engine is kept is decided here.

Sources: https://onnxruntime.ai/docs/execution-providers, the pages of TensorRT, CoreML and QNN.
"""

import re
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from pocketlens.core.bundle import Bundle, GraphRecord
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines.specs import Provider

__all__ = ["ALLOWED", "batch_limit", "engine_cache_folder", "provider_options"]

ALLOWED: Final = frozenset(
    f"trt_{name}"
    for name in (
        "auxiliary_streams",
        "bf16_enable",
        "build_heuristics_enable",
        "builder_optimization_level",
        "context_memory_sharing_enable",
        "cuda_graph_enable",
        "dla_core",
        "dla_enable",
        "engine_cache_enable",
        "engine_cache_prefix",
        "fp16_enable",
        "force_sequential_engine_build",
        "int8_enable",
        "layer_norm_fp32_fallback",
        "max_partition_iterations",
        "max_workspace_size",
        "min_subgraph_size",
        "profile_max_shapes",
        "profile_min_shapes",
        "profile_opt_shapes",
        "sparsity_enable",
        "timing_cache_enable",
    )
)
"""Options of a record that are handed to TensorRT. None of them is a path."""

# Shapes, names and numbers: `pixels:8x96x96x3,mask:8x4`, `pocketlens_image_encoder`.
_VALUE: Final = re.compile(r"[A-Za-z0-9_:x,.\-]{0,2000}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_\-]{0,100}")

_DEFAULTS: Final[dict[Provider, dict[str, str]]] = {
    "cuda": {},
    "tensorrt": {},
    # The newer format: half-precision programs for the neural engine, which the older one has no operators for.
    "coreml": {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
    "qnn": {"backend_type": "htp"},
}


def provider_options(provider: Provider, bundle: Bundle, record: GraphRecord) -> dict[str, str]:
    """Return the options with which `provider` runs the graph of `record`.

    Raises:
        EngineError: the record sets an option that is not in `ALLOWED`, or to what is no number, name or shape.
    """
    options = dict(_DEFAULTS.get(provider, {}))
    if provider != "tensorrt":
        return options
    for name, value in record.settings.items():
        pattern = _PREFIX if name == "trt_engine_cache_prefix" else _VALUE
        if name not in ALLOWED or not pattern.fullmatch(value):
            raise EngineError(
                f"graph {bundle.path(record)}",
                expected="settings that only say how TensorRT computes",
                found=f"{name[:60]!a} = {value[:60]!a}",
                remedy="Export the bundle again; do not use it if it comes from somebody else.",
            )
        options[name] = value
    folder = engine_cache_folder(record)
    for cache in ("trt_engine_cache", "trt_timing_cache"):
        if options.get(f"{cache}_enable") == "1":
            options[f"{cache}_path"] = str(_made(folder))
    return options


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EngineError(
            f"folder {folder}",
            expected="a folder in which TensorRT can keep what it builds",
            found=error.strerror or type(error).__name__,
            remedy="Make this user's cache folder writable.",
        ) from error
    return folder


def engine_cache_folder(record: GraphRecord) -> Path:
    """Return where TensorRT keeps the engine that it built of this graph: one folder for each content of a graph."""
    return user_cache_path("pocketlens") / "tensorrt" / record.sha256


def batch_limit(record: GraphRecord) -> int | None:
    """Return the largest batch that the record's TensorRT profile takes, `None` where it names none."""
    sides = re.findall(r":(\d+)", record.settings.get("trt_profile_max_shapes", ""))
    return max(1, min(map(int, sides))) if sides else None
