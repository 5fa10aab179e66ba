"""Which operators XNNPACK computes in int8: the one choice, for calibration after training and for training with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import torch
from torch import fx

from pocketlens.core.bundle import Role

__all__ = ["static_quantizer"]

_CLIPS: Final = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)
_CLIPPED: Final = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
"""XNNPACK computes these together with the clip behind them."""
_PRODUCTS: Final = (
    *_CLIPPED,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.mm.default,
)
_FUSED: Final = (*_CLIPS, torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def static_quantizer(
    role: Role,
    outputs: Sequence[str],
    *,
    trained: bool = False,
    keep: Callable[[fx.Node], bool] | None = None,
) -> Any:
    """Return the XNNPACK quantizer of a graph: symmetric weights by output channel, activations in 8 bits.

    Args:
        role: of the graph.
        outputs: names of its results, in order.
        trained: for graphs with simulated quantization (`prepare_qat_pt2e`), else for calibration (`prepare_pt2e`).
        keep: false for nodes that stay in float; by default all are quantized.
    """
    # Imported here: it costs seconds, and warns.
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY, QuantizationAnnotation

    class ImageQuantizer(XNNPACKQuantizer):  # type: ignore[misc] # the base class has no types
        """Takes the range of a convolution behind its ReLU6: what is clipped away must not cost steps.

        The base class knows ReLU alone and makes convolution and clip share the range before the clip. What follows
        the last matrix product stays in float: it is the norms of the results, whose sums of squares 8 bits cannot
        hold (a MobileNetV2 tower: lengths of 0.97 to 1.01 where 1 was meant).
        """

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            for clip in annotated.graph.nodes:
                before = clip.args[0] if clip.target in _CLIPS else None
                if before is None or before.target not in _CLIPPED or len(before.users) > 1:
                    continue
                own = before.meta.get(Q_ANNOTATION_KEY)
                if own is not None and own.output_qspec is not None:
                    clip.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=own.output_qspec, _annotated=True)
                    own.output_qspec = None
            for node in _after_products(annotated.graph):
                node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    class FloatLogits(XNNPACKQuantizer):  # type: ignore[misc] # the base class has no types
        """Leaves the layer that gives the logits in float: in int8 it alone changes most greedy captions."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            results = cast("tuple[fx.Node, ...]", annotated.graph.output_node().args[0])
            for name, node in zip(outputs, results, strict=True):
                if name == "logits":
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            return annotated

    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=trained)
    if trained:
        config = _as_converted(config)
    if role == "image_encoder":
        quantizer = ImageQuantizer().set_global(config)
    else:
        # Only the matrix products. The sum of scores and a mask of -1e4 would get steps of 39 in 8 bits, which
        # wipes the scores out (a trained text tower: cosine 0.56).
        quantizer = FloatLogits().set_operator_type(torch.ops.aten.linear.default, config)
    if keep is not None:
        quantizer.set_filter_function(keep)
    return quantizer


def _after_products(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes whose results reach no further matrix product, but for activations computed with one."""
    before: set[fx.Node] = set()
    found = []
    for node in reversed(graph.nodes):
        if any(user in before or user.target in _PRODUCTS for user in node.users):
            before.add(node)
        elif node.op == "call_function" and node.target not in (*_PRODUCTS, *_FUSED):
            found.append(node)
    return found


def _as_converted(config: Any) -> Any:
    """Return the quantization config with simulated steps that are those of the converted graph.

    The fused quantizer that XNNPACK's config asks for ignores the least scale of 2^-12 that conversion applies, and
    lets the ranges of weights lag behind the weights. This one takes scales from the very observer that conversion
    asks, and the ranges of weights from the weights as they are.
    """
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )

    def simulated(spec: Any, observer: Any, averaging: float) -> Any:
        made = FakeQuantize.with_args(observer=observer, averaging_constant=averaging, eps=2**-12)
        return replace(spec, observer_or_fake_quant_ctr=made)

    activation = simulated(config.input_activation, MovingAverageMinMaxObserver, 0.01)
    weight = simulated(config.weight, MovingAveragePerChannelMinMaxObserver, 1.0)
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)
