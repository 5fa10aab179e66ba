"""Every MIL operator against numbers worked out by hand or by another way in numpy."""

from typing import Any

import numpy as np
import pytest
import torch

from pocketlens.core.errors import EngineError
from pocketlens.export.mil.table import OPERATORS
from pocketlens.export.mil.values import Call, stored

X = np.array([[-2.0, 0.5], [3.0, 8.0]], np.float32)
Y = np.array([[1.0, 0.5], [2.0, -4.0]], np.float32)
GRID = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
TRUE, FALSE = np.array(True), np.array(False)


def run(operator: str, inputs: dict[str, Any], declared: str = "fp32") -> Any:
    result = OPERATORS[operator](Call(operator, "it", "some_graph", inputs, declared, {}))
    return [part.numpy() for part in result] if isinstance(result, tuple) else result.numpy()


def erf(x: np.ndarray[Any, Any]) -> Any:
    """The integral of the bell curve, by the trapezoidal rule."""
    steps = np.linspace(0, 1, 20001)
    return np.vectorize(lambda v: 2 / np.sqrt(np.pi) * np.trapezoid(np.exp(-((steps * v) ** 2)) * v, steps))(x)


def softmax(x: np.ndarray[Any, Any]) -> Any:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("abs", {"x": X}, [[2, 0.5], [3, 8]]),
    ("add", {"x": X, "y": 1.0}, X + 1),
    ("cast", {"x": X, "dtype": "int32"}, [[-2, 0], [3, 8]]),
    ("cast", {"x": np.array([-1, 70000], np.int32), "dtype": "uint16"}, [65535, 4464]),
    ("cast", {"x": X, "dtype": "bool"}, [[True, True], [True, True]]),
    ("clip", {"x": X, "alpha": 0.0, "beta": 6.0}, [[0, 0.5], [3, 6]]),
    ("equal", {"x": X, "y": Y}, [[False, True], [False, False]]),
    ("erf", {"x": X / 4}, erf(X / 4)),
    ("exp", {"x": X / 4}, np.exp(X / 4)),
    ("fill_like", {"ref_tensor": X}, [[0, 0], [0, 0]]),
    ("fill_like", {"ref_tensor": X[0], "value": np.float32(1.5)}, [1.5, 1.5]),
    ("floor_div", {"x": X, "y": Y}, [[-2, 1], [1, -2]]),
    ("gelu", {"x": X / 4, "mode": "EXACT"}, X / 4 * (1 + erf(X / 4 / np.sqrt(2))) / 2),
    (
        "gelu",
        {"x": X / 4, "mode": "TANH_APPROXIMATION"},
        X / 8 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X / 4 + 0.044715 * (X / 4) ** 3))),
    ),
    ("greater", {"x": X, "y": Y}, [[False, False], [True, True]]),
    ("greater_equal", {"x": X, "y": Y}, [[False, True], [True, True]]),
    ("identity", {"x": X}, X),
    ("inverse", {"x": X, "epsilon": 1.0}, 1 / (X + 1)),
    ("leaky_relu", {"x": X, "alpha": 0.1}, [[-0.2, 0.5], [3, 8]]),
    ("less", {"x": X, "y": Y}, [[True, False], [False, False]]),
    ("less_equal", {"x": X, "y": Y}, [[True, True], [False, False]]),
    ("logical_and", {"x": X > 0, "y": Y > 0}, [[False, True], [True, False]]),
    ("logical_not", {"x": X > 0}, [[True, False], [False, False]]),
    ("logical_or", {"x": X > 0, "y": Y > 0}, [[True, True], [True, True]]),
    ("maximum", {"x": X, "y": Y}, [[1, 0.5], [3, 8]]),
    ("minimum", {"x": X, "y": Y}, [[-2, 0.5], [2, -4]]),
    ("mul", {"x": X, "y": Y}, [[-2, 0.25], [6, -32]]),
    ("not_equal", {"x": X, "y": Y}, [[True, False], [True, True]]),
    ("pow", {"x": X, "y": 2.0}, [[4, 0.25], [9, 64]]),
    ("real_div", {"x": X, "y": Y}, [[-2, 1], [1.5, -2]]),
    ("relu", {"x": X}, [[0, 0.5], [3, 8]]),
    ("relu6", {"x": X}, [[0, 0.5], [3, 6]]),
    ("rsqrt", {"x": X**2, "epsilon": 0.0}, [[0.5, 2], [1 / 3, 0.125]]),
    ("rsqrt", {"x": X**2, "epsilon": 12.0}, 1 / np.sqrt(X**2 + 12)),
    ("select", {"cond": X > 0, "a": X, "b": Y}, [[1, 0.5], [3, 8]]),
    ("sigmoid", {"x": X}, 1 / (1 + np.exp(-X))),
    ("sigmoid_hard", {"x": X, "alpha": 0.25, "beta": 0.5}, [[0, 0.625], [1, 1]]),
    ("silu", {"x": X}, X / (1 + np.exp(-X))),
    ("sqrt", {"x": X**2}, [[2, 0.5], [3, 8]]),
    ("square", {"x": X}, X**2),
    ("sub", {"x": X, "y": Y}, [[-3, 0], [1, 12]]),
    ("tanh", {"x": X}, np.tanh(X)),
    ("concat", {"values": (X, Y), "axis": 1, "interleave": FALSE}, np.hstack([X, Y])),
    ("expand_dims", {"x": X, "axes": [0, -1]}, X[None, :, :, None]),
    ("gather", {"x": X, "indices": np.array([1, -2], np.int32), "axis": 0}, X[[1, 0]]),
    ("gather", {"x": X, "indices": np.array([[1]], np.int32), "axis": 1}, X[:, [[1]]]),
    ("gather_nd", {"x": X, "indices": np.array([[1, -1], [0, 0]], np.int32)}, [8, -2]),
    ("gather_nd", {"x": GRID[0], "indices": np.array([[[0, 2]]], np.int32)}, GRID[0, :1, 2][None]),
    ("pad", {"x": X, "pad": [1, 0, 0, 2], "mode": "constant", "constant_val": 9.0}, None),
    ("reshape", {"x": GRID, "shape": [0, -1, 2]}, GRID.reshape(1, 8, 2)),
    (
        "slice_by_index",
        {"x": GRID, "begin": [0, 0, 1, 3], "end": [1, 0, 3, 4], "begin_mask": [True, False, False, False],
         "end_mask": [False, True, True, False], "squeeze_mask": [False, False, False, True]},
        GRID[:, :, 1:, 3],
    ),
    (
        "slice_by_index",
        {"x": GRID, "begin": [0, 0, 0, -3], "end": [1, 1, 4, 4], "stride": [1, 1, 2, 2]},
        GRID[:, :, ::2, 1::2],
    ),
    ("slice_by_size", {"x": GRID, "begin": [0, 0, 1, 2], "size": [1, 1, 2, -1]}, GRID[:, :, 1:3, 2:]),
    ("split", {"x": X, "num_splits": 2, "axis": 1}, [X[:, :1], X[:, 1:]]),
    ("split", {"x": GRID, "split_sizes": [1, 3], "axis": 2}, [GRID[:, :, :1], GRID[:, :, 1:]]),
    ("squeeze", {"x": GRID, "axes": [1]}, GRID[:, 0]),
    ("squeeze", {"x": GRID}, GRID[0, 0]),
    ("stack", {"values": (X, Y), "axis": 1}, np.stack([X, Y], axis=1)),
    ("tile", {"x": X, "reps": [1, 2]}, np.tile(X, (1, 2))),
    ("transpose", {"x": GRID, "perm": [0, 3, 2, 1]}, GRID.transpose(0, 3, 2, 1)),
    (
        "avg_pool",
        {"x": GRID, "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid"},
        [[[[2.5, 4.5], [10.5, 12.5]]]],
    ),
    (
        # The padding counts as zeros, or does not count.
        "avg_pool",
        {"x": GRID[..., :2, :2], "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1],
         "exclude_padding_from_average": FALSE},
        [[[[0, 0.25], [1, 1.25]]]],
    ),
    (
        "avg_pool",
        {"x": GRID[..., :2, :2], "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1],
         "exclude_padding_from_average": TRUE},
        [[[[0, 1], [4, 5]]]],
    ),
    (
        # Three columns in steps of two: the ceiling takes in a window of half a size.
        "avg_pool",
        {"x": GRID[..., :2, :3], "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom", "pad": [0, 0, 0, 0],
         "ceil_mode": TRUE, "exclude_padding_from_average": TRUE},
        [[[[2.5, 4]]]],
    ),
    (
        "batch_norm",
        {"x": GRID[..., :1, :2], "mean": np.array([1.0]), "variance": np.array([3.0]), "gamma": np.array([4.0]),
         "beta": np.array([5.0]), "epsilon": 1.0},
        [[[[3, 5]]]],
    ),
    (
        "conv",
        {"x": GRID, "weight": np.ones((1, 1, 3, 3), np.float32), "bias": np.array([100.0], np.float32),
         "strides": [2, 2], "pad_type": "custom", "pad": [1, 0, 1, 0], "dilations": [1, 1], "groups": 1},
        [[[[110, 124], [151, 190]]]],
    ),
    (
        # Output of the input's size: of an even remainder one more is padded behind.
        "conv",
        {"x": GRID[..., :1, :], "weight": np.array([[[[1.0, 10.0]]]], np.float32), "strides": [1, 1],
         "pad_type": "same"},
        [[[[10, 21, 32, 3]]]],
    ),
    (
        "conv",
        {"x": GRID[..., :1, :], "weight": np.array([[[[1.0, 10.0]]]], np.float32), "strides": [1, 1],
         "pad_type": "same_lower"},
        [[[[0, 10, 21, 32]]]],
    ),
    (
        "layer_norm",
        {"x": X, "axes": [-1], "gamma": np.array([1.0, 2.0]), "beta": np.array([0.0, 1.0]), "epsilon": 0.0},
        [[-1, 3], [-1, 3]],
    ),
    ("linear", {"x": X, "weight": Y, "bias": np.array([1.0, 2.0], np.float32)}, X @ Y.T + [1, 2]),
    ("matmul", {"x": X, "y": Y, "transpose_x": FALSE, "transpose_y": TRUE}, X @ Y.T),
    ("matmul", {"x": X, "y": Y, "transpose_x": TRUE, "transpose_y": FALSE}, X.T @ Y),
    (
        "max_pool",
        {"x": -GRID, "kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1],
         "ceil_mode": FALSE},
        [[[[0, -1], [-4, -5]]]],
    ),
    ("reduce_argmax", {"x": X}, [1, 1]),
    ("reduce_argmax", {"x": np.array([[1, 3, 3]]), "axis": 1, "keep_dims": TRUE}, [[1]]),
    ("reduce_max", {"x": X, "axes": [0], "keep_dims": TRUE}, [[3, 8]]),
    ("reduce_mean", {"x": X, "axes": [1], "keep_dims": FALSE}, [-0.75, 5.5]),
    ("reduce_min", {"x": X, "axes": [1]}, [-2, 3]),
    ("reduce_sum", {"x": X}, 9.5),
    (
        "scaled_dot_product_attention",
        {"query": X[None, None], "key": Y[None, None], "value": X[None, None]},
        (softmax(X @ Y.T / np.sqrt(2)) @ X)[None, None],
    ),
    ("softmax", {"x": X, "axis": -1}, softmax(X)),
    # Halves go to the even neighbour; both ends are kept in range.
    ("quantize", {"input": np.array([0.25, 0.75, 99.0, -99.0]), "scale": np.float16(0.5), "zero_point": np.uint8(3),
                  "output_dtype": "uint8"}, [3, 5, 201, 0]),
    ("quantize", {"input": X, "scale": np.array([1.0, 0.25]), "axis": 1, "output_dtype": "int8"}, [[-2, 2], [3, 32]]),
    ("dequantize", {"input": np.array([3, 5, 0], np.uint8), "scale": np.float16(0.5), "zero_point": np.uint8(3)},
     [0, 1, -1.5]),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "inputs", "expected"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_computes_what_mil_defines(operator: str, inputs: dict[str, Any], expected: Any) -> None:
    if operator == "pad":  # before and after of each axis, in their order
        expected = np.pad(X, ((1, 0), (0, 2)), constant_values=9.0)
    found = run(operator, inputs)
    if operator == "split":
        assert len(found) == len(expected)
    for part, wanted in zip(found, expected, strict=True) if operator == "split" else [(found, expected)]:
        assert part.shape == np.shape(wanted)
        np.testing.assert_allclose(part, wanted, atol=2e-6, rtol=2e-6)


def test_every_operator_of_the_table_is_tested() -> None:
    with_state = {"read_state", "coreml_update_state"}  # below
    assert {case[0] for case in CASES} | with_state == set(OPERATORS)


def test_state_is_read_and_written_in_its_own_type() -> None:
    state = {"cache": torch.zeros(2, dtype=torch.float16)}
    OPERATORS["coreml_update_state"](
        Call("coreml_update_state", "it", "g", {"state": "cache", "value": torch.tensor([1.0, 2049.0])}, "fp16", state)
    )
    read = OPERATORS["read_state"](Call("read_state", "it", "g", {"input": "cache"}, "fp16", state))
    assert isinstance(read, torch.Tensor)
    assert read.tolist() == [1.0, 2048.0]  # half precision has no 2049


def test_integers_divide_downwards() -> None:
    whole = {"x": np.array([-7, 7], np.int32), "y": np.array([2, 2], np.int32)}
    assert run("real_div", whole, "int32").tolist() == [-4, 3]


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
        ("concat", {"values": (X, Y), "axis": 0, "interleave": TRUE}),
        ("pad", {"x": X, "pad": [1, 1], "mode": "reflect"}),
        ("gather", {"x": X, "indices": np.array([2], np.int32), "axis": 0}),
        ("gather", {"x": X, "indices": np.array([0], np.int32), "axis": 0, "batch_dims": 1}),
        ("gather_nd", {"x": X, "indices": np.array([[0, 2]], np.int32)}),
        ("slice_by_index", {"x": X, "begin": [1, 0], "end": [0, 2], "stride": [-1, 1]}),
        ("max_pool", {"x": GRID[0], "kernel_sizes": [2], "pad_type": "valid"}),
        ("conv", {"x": GRID, "weight": np.ones((1, 1, 2, 2), np.float32), "pad_type": "mirror"}),
    ],
)
def test_an_unknown_form_of_an_operator_is_refused_by_name(operator: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=f"graph some_graph: expected a form of the operator `{operator}`.*`it`"):
        run(operator, inputs)


def test_half_precision_is_rounded_unless_exact() -> None:
    value = torch.tensor([2049.0, 1e6])
    assert stored(value, "fp16", exact=False).tolist() == [2048.0, float("inf")]
    assert stored(value, "fp16", exact=True).tolist() == [2049.0, 1e6]
    assert stored(torch.tensor([200, -1]), "int8", exact=False).tolist() == [-56, -1]
