"""ONNX precisions that need no calibration: half precision, dynamic int8, 4-bit weights."""

from pathlib import Path
from typing import Final

import onnx

from pocketlens.export.quiet import quiet
from pocketlens.export.targets.onnx_float import kept_in_float, split_linear_layers
from pocketlens.export.targets.onnx_tables import separate_tables

__all__ = ["write_4_bit", "write_dynamic_int8", "write_half"]

_BLOCK: Final = 32
"""Inputs of a linear layer that share a scale: the smallest block that every kernel of ONNX Runtime has."""

_INT8_ARITHMETIC: Final = 4
"""MatMulNBits' accuracy level 4: activations are quantized to int8 on the fly, products summed in int32."""


def write_half(source: Path, path: Path) -> None:
    """Write the float model `source` to `path` with float16 weights and arithmetic; in- and outputs stay as they are.

    Constants too small for float16 are clamped to its smallest number, as ONNX Runtime's converter does.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, path)


def write_dynamic_int8(source: Path, path: Path) -> None:
    """Write the float model `source` to `path` with int8 matrix products and tables.

    The activations' ranges are found in each call, so nothing is calibrated. Convolutions stay in float:
    `ConvInteger` has no fast kernel on a CPU.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    separate_tables(model)
    kept = kept_in_float(model.graph)
    # Shapes that the exporter noted contradict those that the quantizer infers.
    del model.graph.value_info[:]
    with quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            # A Gemm becomes a MatMul of this name before the list is looked at.
            nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
            per_channel=True,
            reduce_range=True,  # as for static int8: 8-bit weights saturate 16-bit sums without VNNI
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def write_4_bit(source: Path, path: Path) -> None:
    """Write the float model `source` to `path` with 4-bit weights in its linear layers.

    Symmetric, a scale for each output and 32 inputs, products as `MatMulNBits`. What is no linear layer
    (convolutions, tables) stays in float, and so does the product that gives the logits.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    split_linear_layers(model)
    with quiet():
        quantizer = MatMulNBitsQuantizer(
            model,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_INT8_ARITHMETIC,
            nodes_to_exclude=kept_in_float(model.graph),
        )
        quantizer.process()
    onnx.save(quantizer.model.model, path)
