"""How a graph is quantized: everything but the choice of layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pocketlens.core.errors import RecipeError

__all__ = ["Calibration", "Settings"]

Calibration = Literal["minmax", "percentile", "entropy"]
"""Where an activation's range comes from."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Static QDQ quantization, weights in 8 bits. The defaults are those of the ONNX target's image encoder.

    Attributes:
        operators: ONNX operator types that are quantized.
        float_nodes: names of nodes that stay in float whatever is searched.
        constant_products_only: leave products of two activations (attention) in float.
        per_channel: one scale for each output channel of a weight, or one for the whole weight.
        weight_bits: 8, or 7, which keeps the 16-bit sums of x86 kernels without VNNI from saturating.
        activation_bits: 8, or 16: ONNX Runtime then computes in float on a CPU, between tensors of 16 bits, from
            weights of 8.
        symmetric: activations as int8 around zero, or as uint8 with a zero point.
        calibration: `minmax` takes the extremes; `percentile` cuts them; `entropy` minimises the
            Kullback-Leibler divergence of the histogram.
        percentile: for `percentile`, the share of values inside the range, in percent.
        bias_correction: take off the biases of convolutions what rounding their weights adds to their mean output.
        overrides: ranges or scales by tensor name, in the form of ONNX Runtime's `TensorQuantOverrides`.

    Raises:
        RecipeError: a value out of range.
    """

    operators: tuple[str, ...] = ("Conv", "Add", "Relu", "Gemm", "MatMul")
    float_nodes: frozenset[str] = frozenset()
    constant_products_only: bool = True
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 7
    activation_bits: Literal[8, 16] = 8
    symmetric: bool = False
    calibration: Calibration = "minmax"
    percentile: float = 99.99
    bias_correction: bool = False
    overrides: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.operators:
            raise _refused("operators", "at least one ONNX operator type", "none")
        if not 50.0 < self.percentile <= 100.0:
            raise _refused("percentile", "more than 50, at most 100", f"{self.percentile:g}")


def _refused(name: str, expected: str, found: str) -> RecipeError:
    return RecipeError(
        f"quantization settings: {name}", expected=expected, found=found, remedy="Correct the value and try again."
    )
