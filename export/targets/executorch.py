"""ExecuTorch programs for the XNNPACK backend: what Android, iOS and Linux boards run on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import fx

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

    engine: str = "executorch"
    suffix: str = ".pte"

    def export(self, graph: Graph, precision: str, feeds: Sequence[Feed], path: Path) -> None:
        """Write `graph` to `path`.

        Args:
            graph: what to write.
            precision: `fp32` or `int8`.
            feeds: calibration inputs of batch 1; used for `int8`.
            path: the file to write; its folder exists.

        Raises:
            ExportError: the lowering left nothing to the backend.
        """
        # Imported here: executorch.exir costs seconds.
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # noqa: PLC0415
                XnnpackPartitioner,
            )
            from executorch.devtools.backend_debug import get_delegation_info  # noqa: PLC0415
            from executorch.exir import (  # noqa: PLC0415
                EdgeCompileConfig,
                ExecutorchBackendConfig,
                to_edge_transform_and_lower,
            )

        example = graph.example_row
        with quiet(), torch.no_grad():
            module = fold_batch_norm(torch.export.export(graph.module, example).module())
            program = torch.export.export(module, example)
            if precision == "int8":
                program = torch.export.export(_quantize(program.module(), graph, feeds), example)
            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            delegated = get_delegation_info(edge.exported_program().graph_module).num_delegated_nodes
            lowered = edge.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
        if not delegated:
            raise ExportError(
                f"ExecuTorch program {graph.role}",
                expected="operators that XNNPACK takes over",
                found="none",
                remedy="Check the installed executorch against constraints.txt.",
            )
        with path.open("wb") as stream:
            lowered.write_to_file(stream)

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "executorch", "torchao")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        return ()


def _quantize(module: fx.GraphModule, graph: Graph, feeds: Sequence[Feed]) -> fx.GraphModule:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # noqa: PLC0415
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, quantizer)
    for feed in feeds:
        prepared(*(torch.from_numpy(feed[spec.name].copy()) for spec in graph.inputs))
    return convert_pt2e(prepared)
