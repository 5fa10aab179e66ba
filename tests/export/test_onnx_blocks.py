"""A decode step in 8-bit blocks: small, close to float, and every linear layer of it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from pocketlens.export.targets.onnx_blocks import write_block_int8

WIDTH, IDS = 128, 300


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A linear layer as `Gemm` with a bias and one as `MatMul`, a table, and a `Gemm` that gives the logits."""
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 20]>
        g (int32[B] token) => (float[B,{IDS}] logits) {{
            word = Gather(table, token)
            first = Gemm<transB = 1>(word, first_weight, first_bias)
            bent = Tanh(first)
            second = MatMul(bent, second_weight)
            logits = Gemm<transB = 1>(second, logit_weight)
        }}""")
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"  # ONNX Runtime's quantizer names its own nodes after them
    rng = np.random.default_rng(0)
    shapes = {
        "table": (IDS, WIDTH),
        "first_weight": (2 * WIDTH, WIDTH),
        "first_bias": (2 * WIDTH,),
        "second_weight": (2 * WIDTH, WIDTH),
        "logit_weight": (IDS, WIDTH),
    }
    for name, shape in shapes.items():
        value = rng.normal(0, 0.1 if "weight" in name else 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    return path


def _logits(path: Path) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"token": np.arange(50, dtype=np.int32)})[0]
    return logits


def test_every_linear_layer_is_in_blocks_and_the_answer_is_close(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    write_block_int8(source, path)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (kinds["MatMulNBits"], kinds["Gemm"], kinds["MatMul"], kinds["Gather"]) == (3, 0, 0, 1)
    expected, found = _logits(source), _logits(path)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert ((expected * found).sum(axis=1) / norms).min() > 0.999
    assert (expected.argmax(axis=1) == found.argmax(axis=1)).mean() > 0.9
    assert not np.array_equal(expected, found)
    table = IDS * WIDTH * 4
    assert path.stat().st_size - table < 0.4 * (source.stat().st_size - table)
