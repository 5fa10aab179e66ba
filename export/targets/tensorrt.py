"""TensorRT for Jetson and other NVIDIA GPUs: an ONNX graph, and how its engine is built where it will run.

An engine fits one GPU and one version of TensorRT, so none is shipped. Beside each graph lies
`build_<role>.sh`, which builds one with `trtexec` (https://docs.nvidia.com/deeplearning/tensorrt, "trtexec").
The `settings` of its record are those with which ONNX Runtime builds and caches the same engine itself
(https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html).

| precision | file | engine |
|---|---|---|
| `fp16` | float32 weights | float16, where TensorRT finds it faster |
| `int8` | float32 weights with QDQ around convolutions and linear layers | int8 there, float16 elsewhere |

The batch is free between 1 and `max_batch`: one engine with one optimization profile serves all of it.
"""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

import onnx

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets.onnx_float import kept_in_float, write_float
from pocketlens.export.targets.onnx_static import CalibrationFeeds

__all__ = ["RECIPES", "TensorrtRecipe", "TensorrtTarget"]


@dataclass(frozen=True)
class TensorrtRecipe:
    """How one precision is made.

    Attributes:
        quantized: QDQ nodes say where TensorRT computes in int8 and with which ranges.
    """

    quantized: bool = False


RECIPES: Final[dict[str, TensorrtRecipe]] = {"fp16": TensorrtRecipe(), "int8": TensorrtRecipe(quantized=True)}
"""By precision, as it stands in the name of a variant."""

_OPERATORS: Final[dict[Role, tuple[str, ...]]] = {
    "image_encoder": ("Conv", "Gemm", "MatMul"),
    "text_encoder": ("MatMul", "Gemm"),
    "caption_prefill": ("MatMul", "Gemm"),
    "caption_decode": ("MatMul", "Gemm"),
}


@dataclass(frozen=True)
class TensorrtTarget:
    """Writes `.onnx` files, each with a build script and provider settings.

    Attributes:
        typical_batch: the batch that an engine is tuned for.
        max_batch: the largest that it takes.
    """

    engine: ClassVar[Literal["tensorrt"]] = "tensorrt"
    suffix: ClassVar[str] = ".onnx"

    typical_batch: int = 1
    max_batch: int = 8

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; a script goes beside each.
            feeds: calibration inputs of batch 1; used for `int8`.

        Raises:
            ExportError: an unknown precision.
        """
        for precision in paths:
            if precision not in RECIPES:
                raise ExportError(
                    f"TensorRT precision {precision!r}",
                    expected=f"one of {', '.join(RECIPES)}",
                    found=f"{precision!r}",
                    remedy="Correct the variant in the recipe.",
                )
        first = next(iter(paths.values()))
        with tempfile.TemporaryDirectory(dir=first.parent) as folder:
            source = Path(folder, "float.onnx")
            write_float(graph, source)
            for precision, path in paths.items():
                if RECIPES[precision].quantized:
                    _quantize(graph, source, feeds, path)
                else:
                    path.write_bytes(source.read_bytes())
        for precision, path in paths.items():
            script = path.with_name(f"build_{path.stem}.sh")
            script.write_text(self.build_script(graph, RECIPES[precision], path.name), encoding="utf-8")

    def build_script(self, graph: Graph, recipe: TensorrtRecipe, name: str) -> str:
        """Return the shell script that builds the engine of the file `name`, which lies beside it."""
        flags = ["--fp16", *(["--int8"] if recipe.quantized else [])]
        lines = [
            "#!/bin/sh",
            "# Builds the TensorRT engine of this graph. Run it on the device that will use the engine.",
            f"# Usage: sh build_{graph.role}.sh FOLDER",
            "# FOLDER gets the engine. It must not be inside the bundle, which holds exactly the files that it lists.",
            "set -eu",
            'out="${1:?usage: build_' + graph.role + '.sh FOLDER}"',
            'here="$(cd "$(dirname "$0")" && pwd)"',
            '"${TRTEXEC:-trtexec}" \\',
            f'  --onnx="$here"/{shlex.quote(name)} \\',
            f'  --saveEngine="$out"/{shlex.quote(Path(name).stem)}.engine \\',
            *(f"  {flag} \\" for flag in flags),
            f"  --minShapes={self._shapes(graph, 1)} \\",
            f"  --optShapes={self._shapes(graph, self.typical_batch)} \\",
            f"  --maxShapes={self._shapes(graph, self.max_batch)} \\",
            '  --timingCacheFile="$out"/timing.cache',
        ]
        return "\n".join(lines) + "\n"

    def settings(self, graph: Graph, precision: str) -> dict[str, str]:
        """Return the options of ONNX Runtime's `TensorrtExecutionProvider` for this graph.

        `trt_engine_cache_path` is left to the app: it is a folder on its device.
        """
        return {
            "trt_fp16_enable": "1",
            "trt_int8_enable": "1" if RECIPES[precision].quantized else "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_prefix": f"pocketlens_{graph.role}",
            "trt_timing_cache_enable": "1",
            "trt_profile_min_shapes": self._shapes(graph, 1),
            "trt_profile_opt_shapes": self._shapes(graph, self.typical_batch),
            "trt_profile_max_shapes": self._shapes(graph, self.max_batch),
        }

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return graph.inputs

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return graph.outputs

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        names = [spec.name for spec in graph.inputs]
        renamed = tuple(
            f"In the file the output `{spec.name}` is called `{spec.name}_out`."
            for spec in graph.outputs
            if spec.name in names
        )
        return (
            "Written on a system without TensorRT, so no engine of it has been built or run yet: "
            f"`build_{graph.role}.sh` builds it on the device, this record's settings let ONNX Runtime do it.",
            f"An engine takes batches of 1 to {self.max_batch}.",
            *renamed,
        )

    def _shapes(self, graph: Graph, batch: int) -> str:
        return ",".join(
            f"{spec.name}:{'x'.join(str(batch if side == -1 else side) for side in spec.shape)}"
            for spec in graph.inputs
        )


def _quantize(graph: Graph, source: Path, feeds: Sequence[Feed], path: Path) -> None:
    """Write `source` to `path` with QDQ nodes of the kind that TensorRT takes: symmetric, signed, biases in float.

    The normalisation of pixels stays in front of the first convolution, because TensorRT quantizes no
    unsigned bytes. Tables stay in float: it has no int8 `Gather`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet():
        quantize_static(
            source,
            path,
            CalibrationFeeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS[graph.role]),
            nodes_to_exclude=kept_in_float(onnx.load(source).graph),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
                "OpTypesToExcludeOutputQuantization": list(_OPERATORS[graph.role]),
                "MatMulConstBOnly": True,
            },
        )
