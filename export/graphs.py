"""The graphs of a student or of a foreign model: modules, names, shapes and examples. The same for every target.

Letters: `B` batch, `T` text length, `D` embedding, `V` visual tokens of width `W`, `S` cache positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from pocketlens.core.bundle import ROLES, Role, TensorSpec
from pocketlens.distill.students.student import Student
from pocketlens.export.sources.exportable import Exportable, exportable_of

__all__ = ["Graph", "student_graphs"]

_DTYPES: Final[dict[torch.dtype, Literal["uint8", "int32", "float32"]]] = {
    torch.uint8: "uint8",
    torch.int32: "int32",
    torch.float32: "float32",
}

_NAMES: Final[dict[Role, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "image_encoder": (("pixels",), ("embedding", "visual_tokens")),
    "text_encoder": (("ids",), ("embedding",)),
    "caption_prefill": (("visual_tokens",), ("cache",)),
    "caption_decode": (("token", "position", "cache"), ("logits", "cache")),
}


@dataclass(frozen=True)
class Graph:
    """One module that is exported, with the contract that its exported form keeps.

    Attributes:
        role: which of the student's graphs.
        module: in eval mode; takes `example` as positional arguments.
        inputs: the free batch axis is -1.
        outputs: likewise.
        example: valid inputs of batch 2; see `example_row` for batch 1.
        ranges: of a student trained for int8: lowest and highest value `(2,)` of each activation, by the name of its
            node in the captured graph.
    """

    role: Role
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: tuple[Tensor, ...]
    ranges: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def example_row(self) -> tuple[Tensor, ...]:
        """The example at batch 1."""
        return tuple(tensor[:1].clone() for tensor in self.example)


@torch.no_grad()
def student_graphs(student: Student | Exportable) -> dict[Role, Graph]:
    """Return the graphs of `student` (in eval mode) by role, in the order of `ROLES`; those that it has."""
    model = exportable_of(student)
    generator = torch.Generator().manual_seed(0)
    spec = model.preprocess
    pixels = torch.randint(0, 256, (2, spec.height_px, spec.width_px, 3), generator=generator).to(torch.uint8)
    ids = torch.randint(0, model.vocab_size, (2, model.text_length), generator=generator, dtype=torch.int32)
    examples: dict[Role, tuple[Tensor, ...]] = {"image_encoder": (pixels,), "text_encoder": (ids,)}
    visual = model.image(pixels)[1]
    if visual is not None and model.caption is not None:
        position = torch.full((2,), model.caption.prefix_length, dtype=torch.int32)
        cache = model.modules["caption_prefill"](visual)
        examples["caption_prefill"] = (visual,)
        examples["caption_decode"] = (torch.zeros(2, dtype=torch.int32), position, cache)
    return {
        role: _graph(role, model.modules[role], examples[role], model.ranges.get(role, {}))
        for role in ROLES
        if role in model.modules
    }


def _graph(role: Role, module: nn.Module, example: tuple[Tensor, ...], ranges: Mapping[str, Tensor]) -> Graph:
    result = module(*example)
    results: tuple[Tensor, ...] = result if isinstance(result, tuple) else (result,)
    inputs, outputs = _NAMES[role]
    # The image encoder of a model that does not caption gives the embedding alone.
    return Graph(role, module, _specs(inputs, example), _specs(outputs[: len(results)], results), example, ranges)


def _specs(names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=_DTYPES[tensor.dtype], shape=(-1, *tensor.shape[1:]))
        for name, tensor in zip(names, tensors, strict=True)
    )
