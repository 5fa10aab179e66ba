"""What a student will cost, before anybody pays for its training: weights, arithmetic, size and measured latency.

An untrained graph has the size and the speed of a trained one: neither depends on the values of the weights.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pocketlens.core.bundle import Latency, Role
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.student import Student
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.latency import THREADS, measure_in_turns
from pocketlens.export.quiet import quiet
from pocketlens.export.targets import open_target

__all__ = ["GraphSketch", "Sketch", "sketch"]

_BITS: Final = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_BLOCK: Final = 32  # 4-bit weights have a scale for so many inputs


class GraphSketch(msgspec.Struct, frozen=True, kw_only=True):
    """One graph of an untrained student.

    Attributes:
        role: which.
        parameters: weights that the graph holds; graphs of one student share some.
        macs: multiply-accumulate operations of one call at batch 1: a picture, a text, a token.
        bytes: predicted size of its ONNX file by precision; `fp32` is measured.
        latency: of the fp32 graph at batch 1 in ONNX Runtime on this machine, one thread.
    """

    role: Role
    parameters: int
    macs: int
    bytes: dict[str, int]
    latency: Latency


class Sketch(msgspec.Struct, frozen=True, kw_only=True):
    """An untrained student.

    Attributes:
        parameters: weights of the whole student, shared ones counted once.
        bytes: predicted size of a bundle's graphs by precision.
        caption_ms: a caption of `caption_tokens` tokens: picture, prefill and each token, fp32.
        graphs: its graphs.
    """

    parameters: int
    bytes: dict[str, int]
    caption_ms: float
    graphs: tuple[GraphSketch, ...]


def sketch(config: StudentConfig, *, runs: int = 50) -> Sketch:
    """Return what a student of these sizes costs.

    Args:
        config: the sizes.
        runs: timed calls of each graph.

    Raises:
        RecipeError: timm does not know the backbone.
        ExportError: a graph cannot be written.
    """
    torch.manual_seed(0)
    student = Student(config).eval()
    graphs = student_graphs(student)
    with tempfile.TemporaryDirectory() as folder:
        paths = {role: Path(folder, f"{role}.onnx") for role in graphs}
        for role, graph in graphs.items():
            with quiet():
                open_target("onnx").export(graph, {"fp32": paths[role]}, ())
        times = _timed(graphs, paths, runs)
        found = tuple(
            GraphSketch(
                role=role,
                parameters=sum(weight.numel() for weight in _weights(graph.module)),
                macs=_macs(graph),
                bytes=_predicted(graph.module, paths[role].stat().st_size),
                latency=times[role],
            )
            for role, graph in graphs.items()
        )
    each = {one.role: one.latency.p50_ms for one in found}
    spoken = each.get("caption_decode", 0.0) * config.caption_tokens
    return Sketch(
        parameters=student.parameter_count(),
        bytes={name: sum(one.bytes[name] for one in found) for name in _BITS},
        caption_ms=each["image_encoder"] + each.get("caption_prefill", 0.0) + spoken,
        graphs=found,
    )


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights that the module really runs: a decode step holds the whole decoder."""
    return list({id(weight): weight for weight in module.parameters()}.values())


def _macs(graph: Graph) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        graph.module(*graph.example_row)
    return int(counter.get_total_flops()) // 2  # the counter takes a multiply and an add for two


def _predicted(module: nn.Module, float_bytes: int) -> dict[str, int]:
    """Return sizes: matrices in so many bits with a float scale a channel (4 bits: a block), the rest as it is."""
    weights = _weights(module)
    matrices = [weight for weight in weights if weight.ndim >= 2]
    linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    small = sum(weight.numel() for weight in weights) - sum(weight.numel() for weight in matrices)
    around = max(0, float_bytes - 4 * (small + sum(weight.numel() for weight in matrices)))
    sizes = {}
    for name, bits in _BITS.items():
        # 4 bits are for linear layers alone; tables and convolutions stay as they are (export/targets/onnx.py).
        packed = [weight for weight in matrices if name != "int4" or id(weight) in linear]
        left = sum(weight.numel() for weight in matrices) - sum(weight.numel() for weight in packed)
        stored = sum(weight.numel() for weight in packed) * bits // 8 + 4 * left
        scales = 0
        if name == "int8":
            scales = 4 * sum(weight.shape[0] for weight in matrices)
        elif name == "int4":
            scales = 4 * sum(-(-weight.numel() // _BLOCK) for weight in packed)
        sizes[name] = around + stored + scales + small * (2 if name == "fp16" else 4)
    return sizes


def _timed(graphs: Mapping[Role, Graph], paths: Mapping[Role, Path], runs: int) -> dict[Role, Latency]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    calls = {}
    for role, graph in graphs.items():
        session = ort.InferenceSession(paths[role], options, providers=["CPUExecutionProvider"])
        feed = {
            given.name: np.ascontiguousarray(tensor.numpy())
            for given, tensor in zip(session.get_inputs(), graph.example_row, strict=True)
        }
        calls[role] = partial(session.run, None, feed)
    return measure_in_turns(calls, runs=runs)
