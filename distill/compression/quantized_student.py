"""A student that answers as its int8 graphs will: the graphs of the export with simulated quantization in them.

Convolutions and linear layers see their weights and inputs rounded to 8 bits; gradients pass the rounding as if it
were not there (straight-through, Bengio et al. 2013; Jacob et al. 2018, section 3). Batch norms are folded into the
convolutions before the training begins, so what is trained is the very weight that the export quantizes. The decoder
is trained through the graph of one decoding step, token after token, for that is what a phone runs.

Letters: `B` batch, `N` text tokens, `V` visual tokens, `E` width, `D` embedding.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pocketlens.core.bundle import Role
from pocketlens.core.errors import TrainingError
from pocketlens.distill.compression.capture import capture
from pocketlens.distill.compression.folding import FoldedNorm
from pocketlens.distill.compression.quantizer import static_quantizer
from pocketlens.distill.quiet import quiet_tracing
from pocketlens.distill.students.student import Student

__all__ = ["QuantizedStudent", "Ranges"]

Ranges = dict[str, dict[str, Tensor]]
"""By role, by node of the captured graph: the lowest and the highest value `(2,)` float32 that its 8 bits stand for."""

_DECODER = "decoder."


class _Graph(nn.Module):
    """One captured graph with simulated quantization."""

    def __init__(self, role: Role, module: nn.Module, example: tuple[Tensor, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        with quiet_tracing():
            # Imported here: torchao and executorch cost seconds.
            from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

            program, self.folded = capture(module, example, free_batch=True)
            graph = program.module()
            # Traced at a batch of 2, the guards would refuse a last batch of 1; the graph itself takes any.
            for node in [one for one in graph.graph.nodes if str(one.target) == "_guards_fn"]:
                graph.graph.erase_node(node)
            graph.recompile()
            self.graph: fx.GraphModule = prepare_qat_pt2e(graph, static_quantizer(role, outputs, trained=True))
        # The library forbids both, for graphs whose dropout would have to be rewritten; students have none.
        del self.graph.train, self.graph.eval
        for weight in self.graph.parameters():
            weight.requires_grad_()

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph(*inputs)

    def quantizers(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each node that is rounded, and what rounds it."""
        for node in self.graph.graph.nodes:
            if node.op == "call_module":
                yield cast("fx.Node", node.args[0]).name, self.graph.get_submodule(str(node.target))


class _Images(nn.Module):
    """Stands for the student's image encoder."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        pixels = torch.zeros(2, student.config.image_px, student.config.image_px, 3, dtype=torch.uint8)
        self.channels = student.image_encoder.channels
        self.traced = _Graph("image_encoder", student.image_encoder, (pixels,), ("embedding", "visual_tokens"))

    def look(self, pixels: Tensor) -> tuple[None, Tensor, Tensor]:
        """Return nothing for the feature map, the embedding `(B, D)` and the visual tokens `(B, V, E)`."""
        return None, *self(pixels)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding, tokens = self.traced(pixels)
        return embedding, tokens


class _Texts(nn.Module):
    """Stands for the student's text encoder."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.length = student.config.text_length
        ids = torch.ones(2, self.length, dtype=torch.int32)
        self.traced = _Graph("text_encoder", student.text_encoder, (ids,), ("embedding",))

    def forward(self, ids: Tensor) -> Tensor:
        embedding: Tensor = self.traced(functional.pad(ids, (0, self.length - ids.shape[1])))
        return embedding


class _Captions(nn.Module):
    """Stands for the student's caption decoder."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        count, width = student.caption_decoder.visual_tokens, student.config.width
        self.visual_tokens = count
        visual = torch.zeros(2, count, width)
        prefill, step = student.caption_prefill().eval(), student.caption_decode().eval()
        token, position = torch.zeros(2, dtype=torch.int32), torch.full((2,), count, dtype=torch.int32)
        with torch.no_grad():
            cache = prefill(visual)
        self.prefill = _Graph("caption_prefill", prefill, (visual,), ("cache",))
        self.step = _Graph("caption_decode", step, (token, position, cache), ("logits", "cache"))
        own = dict(self.prefill.graph.named_parameters())
        for name in [name for name, _ in self.step.graph.named_parameters()]:
            if name in own:  # both graphs hold the same decoder
                parent, _, last = name.rpartition(".")
                setattr(self.step.graph.get_submodule(parent), last, own[name])

    def forward(self, visual: Tensor, ids: Tensor) -> Tensor:
        """Return next-token logits `(B, N, vocab)` for `visual (B, V, E)` and `ids (B, N)`, step by step."""
        cache, logits = self.prefill(visual), []
        for offset in range(ids.shape[1]):
            position = torch.full_like(ids[:, 0], self.visual_tokens + offset)
            scores, cache = self.step(ids[:, offset], position, cache)
            logits.append(scores)
        return torch.stack(logits, dim=1)


class QuantizedStudent(nn.Module):
    """Answers in place of a student while it is trained for int8.

    Args:
        student: in eval mode; its weights are shared where no batch norm is folded into them.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.config = student.config
        self.image_encoder = _Images(student)
        self.text_encoder = _Texts(student)
        self.caption_decoder = _Captions(student)
        self.logit_scale = nn.Parameter(student.logit_scale.detach().clone())

    def graphs(self) -> dict[Role, _Graph]:
        """Return the graphs by role."""
        return {
            "image_encoder": self.image_encoder.traced,
            "text_encoder": self.text_encoder.traced,
            "caption_prefill": self.caption_decoder.prefill,
            "caption_decode": self.caption_decoder.step,
        }

    def calibrate(self, on: bool) -> None:
        """Switch the rounding off and the moving of ranges on, or back to both on."""
        for quantizer in self._quantizers():
            quantizer.enable_fake_quant(not on)

    def follow(self, share: float) -> None:
        """Let the ranges of activations follow what is seen: move by `share` of the way each time; 0 holds them."""
        for quantizer in self._quantizers():
            if not quantizer.is_per_channel:
                quantizer.activation_post_process.averaging_constant = share
                quantizer.enable_observer(share > 0)

    def settle(self) -> None:
        """Take the scales from the ranges as they are; copies that saw other pictures agree afterwards."""
        for quantizer in self._quantizers():
            scale, zero_point = quantizer.calculate_qparams()
            quantizer.scale.copy_(scale)
            quantizer.zero_point.copy_(zero_point)

    def ranges(self) -> Ranges:
        """Return the ranges of all activations."""
        found: Ranges = {}
        for role, graph in self.graphs().items():
            found[role] = {
                name: torch.stack((one.activation_post_process.min_val, one.activation_post_process.max_val))
                for name, one in graph.quantizers()
                if not one.is_per_channel
            }
        return found

    @torch.no_grad()
    def write_back(self, student: Student) -> None:
        """Give `student` the trained weights and ranges.

        A folded convolution gives its weight to the student's and its bias to the batch norm, which is made to
        change nothing else: mean 0, variance and scale 1. So the export folds it to the trained weight again.

        Raises:
            TrainingError: a weight of the graphs is none of the student's.
        """
        for part, graph in (("image_encoder", self.image_encoder.traced), ("text_encoder", self.text_encoder.traced)):
            _copy(graph, student.get_submodule(part))
        for graph in (self.caption_decoder.prefill, self.caption_decoder.step):
            _copy(graph, student.caption_decoder)
        student.logit_scale.copy_(self.logit_scale)
        student.ranges = {role: {k: v.clone() for k, v in found.items()} for role, found in self.ranges().items()}

    def _quantizers(self) -> Iterator[Any]:
        return (one for graph in self.graphs().values() for _, one in graph.quantizers())


def _copy(graph: _Graph, module: nn.Module) -> None:
    own: dict[str, Tensor] = dict(module.named_parameters())
    own |= {name: value for name, value in module.named_buffers() if "running_" in name}
    given = dict(graph.graph.named_parameters())
    for stem, norm in graph.folded.items():
        _unfold(norm, given.pop(f"{stem}_weight"), given.pop(f"{stem}_bias"), own)
    for name, value in given.items():
        target = own.get(name.removeprefix(_DECODER))
        if target is None or target.shape != value.shape:
            raise TrainingError(
                f"weight {name}",
                expected="a weight of the student",
                found="none of this name and shape",
                remedy="Train this student without [qat]; its backbone is traced into weights that cannot be named.",
            )
        target.copy_(value)


def _unfold(norm: FoldedNorm, weight: Tensor, bias: Tensor, own: dict[str, Tensor]) -> None:
    own[norm.weight].copy_(weight)
    if norm.bias is not None:
        own[norm.bias].zero_()
    own[norm.mean].zero_()
    own[norm.var].fill_(1.0 - norm.eps)
    own[norm.gamma].copy_(torch.rsqrt(own[norm.var] + norm.eps).reciprocal())
    own[norm.beta].copy_(bias)
