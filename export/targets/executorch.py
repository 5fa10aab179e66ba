"""ExecuTorch programs for the XNNPACK backend: what Android, iOS and Linux boards run on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed

__all__ = ["ExecutorchTarget"]


@dataclass(frozen=True)
class ExecutorchTarget:
    """Writes `.pte` files of batch 1 with one method, `forward`.

    Int8 is PT2E: symmetric, per channel for weights, static for activations.
    """

    engine: ClassVar[Literal["executorch"]] = "executorch"
    suffix: ClassVar[str] = ".pte"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (`fp32`, `int8`) in `paths`.

        Args:
            graph: what to write.
            paths: files by precision; their folders exist.
            feeds: calibration inputs of batch 1; used for `int8`.

        Raises:
            ExportError: the lowering left nothing to the backend.
        """
        example = graph.example_row
        with quiet(), torch.no_grad():
            module = fold_batch_norm(torch.export.export(graph.module, example).module())
            program = torch.export.export(module, example)
            for precision, path in paths.items():
                if precision == "int8":
                    program = torch.export.export(_quantize(program.module(), graph, feeds), example)
                _lower(program, graph.role, path)

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return tuple(_one_row(spec) for spec in graph.inputs)

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return tuple(_one_row(spec) for spec in graph.outputs)

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "executorch", "torchao")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return ()


def _one_row(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=(1, *spec.shape[1:]))


def _lower(program: ExportedProgram, role: Role, path: Path) -> None:
    # Imported here: executorch.exir costs seconds.
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackPartitioner,
    )
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )

    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    if not get_delegation_info(edge.exported_program().graph_module).num_delegated_nodes:
        raise ExportError(
            f"ExecuTorch program {role}",
            expected="operators that XNNPACK takes over",
            found="none",
            remedy="Check the installed executorch against constraints.txt.",
        )
    lowered = edge.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    with path.open("wb") as stream:
        lowered.write_to_file(stream)


def _quantize(module: fx.GraphModule, graph: Graph, feeds: Sequence[Feed]) -> fx.GraphModule:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class FloatLogits(XNNPACKQuantizer):  # type: ignore[misc] # the base class has no types
        """Leaves the layer that gives the logits in float: in int8 it alone changes most greedy captions."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            results = cast("tuple[fx.Node, ...]", annotated.graph.output_node().args[0])
            for spec, node in zip(graph.outputs, results, strict=True):
                if spec.name == "logits":
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    config = get_symmetric_quantization_config(is_per_channel=True)
    if graph.role == "image_encoder":
        quantizer = XNNPACKQuantizer().set_global(config)
    else:
        # Only the matrix products. The sum of scores and a mask of -1e4 would get steps of 39 in 8 bits, which
        # wipes the scores out (a trained text tower: cosine 0.56).
        quantizer = FloatLogits().set_operator_type(torch.ops.aten.linear.default, config)
    prepared = prepare_pt2e(module, quantizer)
    for feed in feeds:
        prepared(*(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs))
    converted: fx.GraphModule = convert_pt2e(prepared)
    return converted
