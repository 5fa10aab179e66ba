"""CoreML ML programs. Converted on any system, run on Apple's only; `pocketlens.export.mil` runs them in torch.

| precision | weights | arithmetic | runs on |
|---|---|---|---|
| `fp32` | float32 | float32: CPU and GPU only, the neural engine has none | iOS 17, macOS 14 |
| `fp16` | float16 | float16 | iOS 17, macOS 14 |
| `int8` | int8 by output channel | float16 | iOS 17, macOS 14 |
| `palette4` | 16 levels a weight matrix, by k-means | float16 | iOS 17, macOS 14 |
| `int4` | int4 by blocks of input channels | float16 | iOS 18, macOS 15 |
| `w8a8` | int8 by output channel | int8 in convolutions and linear layers, float16 elsewhere | iOS 17, macOS 14 |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch

from pocketlens.core.bundle import TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets.coreml_compression import Weights, compressed, quantized
from pocketlens.export.targets.coreml_forms import MAX_RANK, Form, captured

__all__ = ["RECIPES", "CoremlRecipe", "CoremlTarget", "coreml_recipe"]

_ALIAS: Final = torch.ops.aten.alias.default
_FILLED: Final = torch.ops.aten.full_like.default
_WHERE_NUMBER: Final = {torch.ops.aten.where.ScalarSelf: 1, torch.ops.aten.where.ScalarOther: 2}
"""The argument that is a number."""


@dataclass(frozen=True)
class CoremlRecipe:
    """How one precision is made.

    Attributes:
        weights: how they are stored.
        activations: `int8` quantizes what goes into and comes out of the layers with weights; it needs
            calibration, and brings int8 weights of its own.
        arithmetic: of everything else.
        deployment: the first system that runs it.
    """

    weights: Weights = "float"
    activations: Literal["float", "int8"] = "float"
    arithmetic: Literal["float16", "float32"] = "float16"
    deployment: Literal["iOS17", "iOS18"] = "iOS17"


RECIPES: Final[dict[str, CoremlRecipe]] = {
    "fp32": CoremlRecipe(arithmetic="float32"),
    "fp16": CoremlRecipe(),
    "int8": CoremlRecipe(weights="int8"),
    "palette4": CoremlRecipe(weights="palette4"),
    "int4": CoremlRecipe(weights="int4", deployment="iOS18"),
    "w8a8": CoremlRecipe(activations="int8"),
}
"""By precision, as it stands in the name of a variant."""


@dataclass(frozen=True)
class CoremlTarget:
    """Writes `.mlpackage` folders of batch 1.

    Attributes:
        pixels: `picture` gives the image encoder an `ImageType` input, which takes a `CVPixelBuffer`
            of 8-bit levels without a copy to floats; `array` a float32 array of the levels 0 to 255,
            since CoreML arrays have no 8-bit type.
        stateful: keep the caption cache in a state buffer (`ct.StateType`, iOS 18): the decode step
            then takes and returns no cache, so a caption copies it once instead of twice a token.
    """

    engine: ClassVar[Literal["coreml"]] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"

    pixels: Literal["picture", "array"] = "picture"
    stateful: bool = False

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`.

        Args:
            graph: what to write.
            paths: folders by precision; their parents exist.
            feeds: calibration inputs of batch 1; used for `w8a8`.

        Raises:
            ExportError: an unknown precision, or `w8a8` without calibration inputs.
        """
        recipes = {precision: coreml_recipe(precision) for precision in paths}
        converted: dict[CoremlRecipe, Any] = {}
        with quiet(), torch.no_grad():
            for precision, recipe in recipes.items():
                shared = replace(recipe, weights="float")  # weights are compressed last: what comes before is common
                if shared not in converted:
                    converted[shared] = self._converted(graph, shared, feeds)
                compressed(converted[shared], recipe.weights).save(str(paths[precision]))
                # A table for a debugger, which coremltools adds; no part of a package that ships.
                (paths[precision] / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what an app feeds. A state buffer is no input."""
        return tuple(self._spec(spec) for spec in graph.inputs if spec.name not in self._states(graph))

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what an app gets."""
        return tuple(self._spec(spec) for spec in graph.outputs if spec.name not in self._states(graph))

    @staticmethod
    def file_name(graph: Graph, output: TensorSpec) -> str:
        """Return the name of an output in the file, which cannot be that of an input."""
        return f"{output.name}_out" if output.name in {s.name for s in graph.inputs} else output.name

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the folder."""
        return {name: version(name) for name in ("torch", "coremltools", "executorch", "torchao")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        notes = ["Converted on a system without CoreML: seeing its speed and its rounding needs an Apple device."]
        for spec in graph.inputs:
            if spec.dtype == "uint8" and self.pixels == "array":
                notes.append("Feed the 8-bit levels 0 to 255 as float32: CoreML arrays have no 8-bit type.")
            elif spec.dtype == "uint8":
                height, width = spec.shape[1:3]
                notes.append(f"Feed a CVPixelBuffer (32BGRA) of exactly {width} x {height} preprocessed pixels.")
        if any(len(spec.shape) > MAX_RANK for spec in (*graph.inputs, *graph.outputs)):
            notes.append("The cache's layer axis and key/value axis are one axis: CoreML stops at five.")
        states = self._states(graph)
        for name in states:
            notes.append(
                f"`{name}` is a float16 state buffer: write the prefill's `{name}` into it before the first step "
                "(MLState.withMultiArray). Needs iOS 18 or macOS 15."
            )
        for spec in graph.outputs:
            if spec.name not in states and self.file_name(graph, spec) != spec.name:
                notes.append(f"In the file the output `{spec.name}` is called `{spec.name}_out`.")
        return tuple(notes)

    def _states(self, graph: Graph) -> tuple[str, ...]:
        """Return what is kept in state buffers: whatever goes in and comes out again."""
        taken = {spec.name for spec in graph.inputs}
        return tuple(spec.name for spec in graph.outputs if self.stateful and spec.name in taken)

    def _converted(self, graph: Graph, recipe: CoremlRecipe, feeds: Sequence[Feed]) -> Any:
        """Return coremltools' model of `graph`, its weights not compressed."""
        # Captured anew each time: quantization and conversion change what they are given.
        form = captured(graph)
        if recipe.activations == "int8":
            form = quantized(form, graph, feeds)
        if self.pixels == "picture" and graph.role == "image_encoder":
            form = form.with_picture()
        states = self._states(graph)
        if states:
            form = form.with_state()
        names = [self.file_name(graph, spec) for spec in graph.outputs if spec.name not in states]
        return _convert(form, recipe, names)

    def _spec(self, spec: TensorSpec) -> TensorSpec:
        shape = (1, *spec.shape[1:])
        if len(shape) > MAX_RANK:
            shape = (shape[0], shape[1] * shape[2], *shape[3:])
        array = spec.dtype == "uint8" and self.pixels == "array"
        return TensorSpec(name=spec.name, dtype="float32" if array else spec.dtype, shape=shape)


def coreml_recipe(precision: str) -> CoremlRecipe:
    """Return the recipe of `precision`.

    Raises:
        ExportError: there is none of that name.
    """
    if precision not in RECIPES:
        raise ExportError(
            f"CoreML precision {precision!r}",
            expected=f"one of {', '.join(RECIPES)}",
            found=f"{precision!r}",
            remedy="Correct the variant in the recipe.",
        )
    return RECIPES[precision]


def _convert(form: Form, recipe: CoremlRecipe, names: Sequence[str]) -> Any:
    import coremltools as ct

    deployment = "iOS18" if form.state is not None else recipe.deployment
    extra: dict[str, Any] = {}
    if form.picture is not None:
        shape = tuple(form.example[0].shape)
        extra["inputs"] = [ct.ImageType(name=form.picture, shape=shape, color_layout=ct.colorlayout.RGB)]
    return ct.convert(
        _in_known_operators(torch.export.export(form.module, form.example).run_decompositions({})),
        # Every result of ours is float32, also where half precision computes it.
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in names],
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32 if recipe.arithmetic == "float32" else ct.precision.FLOAT16,
        minimum_deployment_target=getattr(ct.target, deployment),
        skip_model_load=True,
        **extra,
    )


def _in_known_operators(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Say in others what coremltools 9.0 does not know: masks of transformers' SigLIP have both.

    `alias` is its input by another name; `where` with a number is `where` with a tensor of that number.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is _ALIAS:
            # A result keeps its own name: the program's signature knows it by that.
            for user in [user for user in node.users if user.op != "output"]:
                user.replace_input_with(node, node.args[0])
            if not node.users:
                graph.erase_node(node)
        elif node.target in _WHERE_NUMBER:
            number = _WHERE_NUMBER[node.target]
            tensor = node.args[3 - number]
            with graph.inserting_before(node):
                filled = graph.call_function(_FILLED, (tensor, node.args[number]))
                filled.meta["val"] = torch.full_like(tensor.meta["val"], node.args[number])
            node.target = torch.ops.aten.where.self
            node.update_arg(number, filled)
    return program
