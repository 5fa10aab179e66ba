"""LiteRT (`.tflite`) through litert-torch, an extra of its own: `pip install 'pocketlens[litert]'`.

Only `fp32`. Letters: `T` text length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch

from pocketlens.core.bundle import TensorSpec
from pocketlens.core.errors import ExportError
from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed
from pocketlens.export.targets.executorch_program import check_precision, one_row

__all__ = ["RECIPES", "LitertRecipe", "LitertTarget"]


@dataclass(frozen=True)
class LitertRecipe:
    """How one precision is made.

    Attributes:
        weights: how they are stored.
    """

    weights: Literal["float32"] = "float32"


RECIPES: Final[dict[str, LitertRecipe]] = {"fp32": LitertRecipe()}
"""By precision, as it stands in the name of a variant."""


@dataclass(frozen=True)
class LitertTarget:
    """Writes `.tflite` files of batch 1 with one signature, `serving_default`."""

    engine: ClassVar[Literal["litert"]] = "litert"
    suffix: ClassVar[str] = ".tflite"

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        """Write `graph` once for each precision (the keys of `RECIPES`) in `paths`; nothing is calibrated.

        Raises:
            ExportError: an unknown precision, or litert-torch is not installed.
        """
        for precision in paths:
            check_precision("LiteRT", precision, tuple(RECIPES))
        with quiet(), torch.no_grad():
            converter = _converter()
            module = fold_batch_norm(torch.export.export(graph.module, graph.example_row).module(check_guards=False))
            model = converter.convert(module, graph.example_row)
            for path in paths.values():
                model.export(str(path))

    def inputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what goes in."""
        return one_row(graph.inputs)

    def outputs(self, graph: Graph) -> tuple[TensorSpec, ...]:
        """Return what comes out, in this order."""
        return one_row(graph.outputs)

    def tools(self) -> dict[str, str]:
        """Return the versions of what writes the file."""
        return {name: version(name) for name in ("torch", "litert-torch", "ai-edge-litert")}

    def notes(self, graph: Graph) -> tuple[str, ...]:
        """Return what a reader of the graph's record must know."""
        names = [f"`{spec.name}` is `args_{index}`" for index, spec in enumerate(graph.inputs)]
        names += [f"`{spec.name}` is `output_{index}`" for index, spec in enumerate(graph.outputs)]
        return (
            f"In the file {', '.join(names)}.",
            "The runtime of this package has no LiteRT engine, so the graph was not measured at export.",
        )


def _converter() -> Any:
    try:
        return import_module("litert_torch")
    except ImportError as error:
        raise ExportError(
            "LiteRT export",
            expected="the package litert-torch",
            found=str(error),
            remedy="pip install 'pocketlens[litert]' (without constraints.txt: see docs/export.md).",
        ) from error
