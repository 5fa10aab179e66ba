"""CoreML ML programs for iOS 17 / macOS 14 and later. Converted on any system, run on Apple's only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
import torch
from torch import Tensor, fx

from pocketlens.core.bundle import TensorSpec
from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed

__all__ = ["CoremlTarget"]

_MAX_RANK: Final = 5
_SELECT: Final = torch.ops.aten.select.int
_STACK: Final = torch.ops.aten.stack.default
_CAT: Final = torch.ops.aten.cat.default


@dataclass(frozen=True)
class CoremlTarget:
    """Writes `.mlpackage` folders of batch 1 with float16 weights and arithmetic."""

    engine: ClassVar[Literal["coreml"]] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` to the folder `paths["fp16"]`; `feeds` are not needed."""
        with quiet():
            import coremltools as ct

        types = {"int32": np.int32, "float32": np.float32}
        with quiet(), torch.no_grad():
            example = tuple(_no_bytes(tensor) for tensor in graph.example_row)
            module = torch.export.export(graph.module, example).module(check_guards=False)
            module = fold_batch_norm(_flatten_cache(module))
            flat = tuple(_flat(tensor) for tensor in example)
            program = torch.export.export(module, flat).run_decompositions({})
            specs = self.outputs(graph)
            model = ct.convert(
                program,
                outputs=[ct.TensorType(name=self.file_name(graph, s), dtype=types[s.dtype]) for s in specs],
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT16,
                minimum_deployment_target=ct.target.iOS17,
                skip_model_load=True,
            )
            model.save(str(paths["fp16"]))
        # A table for a debugger, which coremltools adds; no part of a package that ships.
        (paths["fp16"] / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what an app feeds: uint8 becomes float32, and a cache loses an axis."""
        return tuple(_spec(spec) for spec in graph.inputs)

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what an app gets."""
        return tuple(_spec(spec) for spec in graph.outputs)

    @staticmethod
    def file_name(graph: Graph, output: TensorSpec) -> str:
        """Return the name of an output in the file, which cannot be that of an input."""
        return f"{output.name}_out" if output.name in {s.name for s in graph.inputs} else output.name

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the folder."""
        return {name: version(name) for name in ("torch", "coremltools")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        notes = ["Converted on a system without CoreML: running it, and so its parity, needs an Apple device."]
        if any(spec.dtype == "uint8" for spec in graph.inputs):
            notes.append("Feed the 8-bit levels 0 to 255 as float32: CoreML arrays have no 8-bit type.")
        if any(len(spec.shape) > _MAX_RANK for spec in (*graph.inputs, *graph.outputs)):
            notes.append("The cache's layer axis and key/value axis are one axis: CoreML stops at five.")
        for spec in graph.outputs:
            if self.file_name(graph, spec) != spec.name:
                notes.append(f"In the file the output `{spec.name}` is called `{spec.name}_out`.")
        return tuple(notes)


def _no_bytes(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.dtype == torch.uint8 else tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(1, 2) if tensor.dim() > _MAX_RANK else tensor


def _spec(spec: TensorSpec) -> TensorSpec:
    shape = (1, *spec.shape[1:])
    if len(shape) > _MAX_RANK:
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    return TensorSpec(name=spec.name, dtype="float32" if spec.dtype == "uint8" else spec.dtype, shape=shape)


def _flatten_cache(module: fx.GraphModule) -> fx.GraphModule:
    """Rewrite caches `(B, L, 2, H, S, K)` to `(B, 2 * L, H, S, K)`: CoreML knows no sixth axis.

    Stacking layers `(B, 2, ...)` along axis 1 is, flattened, concatenating them; reading layer `l`,
    part `p` is reading row `2 * l + p`.
    """
    for node in list(module.graph.nodes):
        if node.target is _STACK and node.meta["val"].dim() > _MAX_RANK:
            node.target = _CAT
        if node.op != "placeholder" or node.meta["val"].dim() <= _MAX_RANK:
            continue
        for layer in [user for user in node.users if user.target is _SELECT]:
            for part in [user for user in layer.users if user.target is _SELECT]:
                with module.graph.inserting_before(part):
                    row = module.graph.call_function(_SELECT, (node, 1, 2 * layer.args[2] + part.args[2]))
                part.replace_all_uses_with(row)
                module.graph.erase_node(part)
    module.graph.eliminate_dead_code()
    # A new module, because the exported one carries a hook that checks its inputs' old shapes.
    return fx.GraphModule(module, module.graph)
