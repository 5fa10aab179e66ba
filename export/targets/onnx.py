"""ONNX for ONNX Runtime: opset 20 with a free batch axis.

| precision | weights | arithmetic |
|---|---|---|
| `fp32` | float32 | float32 |
| `fp16` | float16 | float16; a CPU without it converts around each operator |
| `int8` | int8 by output channel | int8 in convolutions, linear layers and tables, ranges by calibration |
| `int8_dynamic` | int8 by output channel | int8 in linear layers, ranges found in each call |
| `int8_blocks` | the same; in the decode step int8 by blocks of 128 inputs, logits too | the same |
| `int4` | 4 bits by blocks of 32 inputs | int8 in linear layers, ranges found in each call |
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

from pocketlens.core.bundle import TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed
from pocketlens.export.targets.onnx_blocks import write_block_int8
from pocketlens.export.targets.onnx_compact import write_4_bit, write_dynamic_int8, write_half
from pocketlens.export.targets.onnx_float import write_float
from pocketlens.export.targets.onnx_static import quantize_static_int8

__all__ = ["RECIPES", "OnnxRecipe", "OnnxTarget"]


@dataclass(frozen=True)
class OnnxRecipe:
    """How one precision is made.

    Attributes:
        weights: how they are stored.
        activations: `float`; `static` has ranges from calibration, `dynamic` finds them in each call.
        decode_blocks: the decode step has weights in blocks instead; see `pocketlens.export.targets.onnx_blocks`.
    """

    weights: Literal["float32", "float16", "int8", "int4"] = "float32"
    activations: Literal["float", "static", "dynamic"] = "float"
    decode_blocks: bool = False


RECIPES: Final[dict[str, OnnxRecipe]] = {
    "fp32": OnnxRecipe(),
    "fp16": OnnxRecipe(weights="float16"),
    "int8": OnnxRecipe(weights="int8", activations="static"),
    "int8_dynamic": OnnxRecipe(weights="int8", activations="dynamic"),
    "int8_blocks": OnnxRecipe(weights="int8", activations="dynamic", decode_blocks=True),
    "int4": OnnxRecipe(weights="int4", activations="dynamic"),
}
"""By precision, as it stands in the name of a variant."""

_WRITERS: Final[dict[OnnxRecipe, Callable[[Path, Path], object]]] = {
    RECIPES["fp32"]: shutil.copyfile,
    RECIPES["fp16"]: write_half,
    RECIPES["int8_dynamic"]: write_dynamic_int8,
    RECIPES["int8_blocks"]: write_dynamic_int8,  # and `write_block_int8` for the decode step
    RECIPES["int4"]: write_4_bit,
}


@dataclass(frozen=True)
class OnnxTarget:
    """Writes `.onnx` files."""

    engine: ClassVar[Literal["onnxruntime"]] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; their folders exist.
            feeds: calibration inputs of batch 1; used for `int8`.

        Raises:
            ExportError: an unknown precision, or the graph has no image input of the expected form (`int8`).
        """
        recipes = {precision: _recipe(precision) for precision in paths}
        first = next(iter(paths.values()))
        with tempfile.TemporaryDirectory(dir=first.parent) as folder:
            source = Path(folder, "float.onnx")
            write_float(graph, source)
            for precision, recipe in recipes.items():
                if recipe.activations != "static":
                    blocks = recipe.decode_blocks and graph.role == "caption_decode"
                    (write_block_int8 if blocks else _WRITERS[recipe])(source, paths[precision])
            if "int8" in paths:  # last, because it changes its source
                quantize_static_int8(graph, source, feeds, paths["int8"])

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
        renamed = [spec.name for spec in graph.outputs if spec.name in names]
        return tuple(f"In the file the output `{name}` is called `{name}_out`." for name in renamed)


def _recipe(precision: str) -> OnnxRecipe:
    if precision not in RECIPES:
        raise ExportError(
            f"ONNX precision {precision!r}",
            expected=f"one of {', '.join(RECIPES)}",
            found=f"{precision!r}",
            remedy="Correct the variant in the recipe.",
        )
    return RECIPES[precision]
