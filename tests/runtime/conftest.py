"""A tiny real bundle: random weights, real ONNX graphs with the contract's inputs and outputs.

Letters: `B` batch, `V` visual tokens, `E` width, `D` embedding, `N` heads, `K` width of one head,
`S` cache positions, `T` text length.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pocketlens.core.bundle import (
    CaptionSpec,
    EmbeddingSpec,
    GraphRecord,
    Latency,
    Manifest,
    Role,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    write_bundle,
)
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import SPECIAL_TOKENS

SIDE, PATCH, V, E, D, N, K, T, TOKENS = 8, 4, 4, 8, 8, 2, 4, 16, 8
S = V + TOKENS
VOCAB = [*SPECIAL_TOKENS, "Ġ", *"abcdefghijklmnopqrstuvwxyz"]

_HEADER = '<ir_version: 10, opset_import: ["": 20]>'
_GRAPHS: dict[Role, str] = {
    "image_encoder": f"""
        g (uint8[B,{SIDE},{SIDE},3] pixels) => (float[B,{D}] embedding, float[B,{V},{E}] visual_tokens) {{
            wide = Cast<to = 1>(pixels)
            scaled = Mul(wide, pixel_scale)
            centred = Sub(scaled, half)
            grid = Reshape(centred, grid_shape)
            turned = Transpose<perm = [0, 1, 3, 2, 4, 5]>(grid)
            patches = Reshape(turned, patch_shape)
            mixed = MatMul(patches, patch_weight)
            visual_tokens = Tanh(mixed)
            pooled = ReduceMean<keepdims = 0>(visual_tokens, axis_one)
            projected = MatMul(pooled, image_projection)
            length = ReduceL2(projected, axis_one)
            embedding = Div(projected, length)
        }}""",
    "text_encoder": f"""
        g (int32[B,{T}] ids) => (float[B,{D}] embedding) {{
            rows = Gather(text_table, ids)
            padding = Equal(ids, pad)
            real = Not(padding)
            weight = Cast<to = 1>(real)
            column = Unsqueeze(weight, axis_last)
            kept = Mul(rows, column)
            summed = ReduceSum<keepdims = 0>(kept, axis_one)
            projected = MatMul(summed, text_projection)
            length = ReduceL2(projected, axis_one)
            embedding = Div(projected, length)
        }}""",
    "caption_prefill": f"""
        g (float[B,{V},{E}] visual_tokens) => (float[B,1,2,{N},{S},{K}] cache) {{
            key = MatMul(visual_tokens, key_weight)
            key_heads = Reshape(key, prefix_heads)
            keys = Transpose<perm = [0, 2, 1, 3]>(key_heads)
            keys_one = Unsqueeze(keys, axis_one)
            value = MatMul(visual_tokens, value_weight)
            value_heads = Reshape(value, prefix_heads)
            values = Transpose<perm = [0, 2, 1, 3]>(value_heads)
            values_one = Unsqueeze(values, axis_one)
            both = Concat<axis = 1>(keys_one, values_one)
            layer = Unsqueeze(both, axis_one)
            cache = Pad(layer, cache_pads)
        }}""",
    "caption_decode": f"""
        g (int32[B] token, int32[B] position, float[B,1,2,{N},{S},{K}] cache)
                => (float[B,{len(VOCAB)}] logits, float[B,1,2,{N},{S},{K}] cache_out) {{
            word = Gather(token_table, token)
            place = Gather(position_table, position)
            x = Add(word, place)
            query = MatMul(x, query_weight)
            query_heads = Reshape(query, one_head)
            key = MatMul(x, key_weight)
            key_heads = Reshape(key, one_head)
            value = MatMul(x, value_weight)
            value_heads = Reshape(value, one_head)
            column = Unsqueeze(position, axis_one)
            is_here = Equal(order, column)
            here = Reshape(is_here, row_shape)
            old_keys = Gather<axis = 2>(cache, zero)
            old_values = Gather<axis = 2>(cache, one)
            old_keys_flat = Squeeze(old_keys, axis_one)
            old_values_flat = Squeeze(old_values, axis_one)
            keys = Where(here, key_heads, old_keys_flat)
            values = Where(here, value_heads, old_values_flat)
            keys_turned = Transpose<perm = [0, 1, 3, 2]>(keys)
            raw = MatMul(query_heads, keys_turned)
            scores = Mul(raw, temperature)
            is_later = Greater(order, column)
            later = Cast<to = 1>(is_later)
            hidden = Mul(later, masked)
            mask = Reshape(hidden, mask_shape)
            visible = Add(scores, mask)
            weights = Softmax<axis = -1>(visible)
            mixed = MatMul(weights, values)
            joined = Reshape(mixed, joined_shape)
            output = MatMul(joined, output_weight)
            sum = Add(x, output)
            scored = MatMul(sum, logit_weight)
            logits = Add(scored, logit_bias)
            keys_one = Unsqueeze(keys, axis_one)
            values_one = Unsqueeze(values, axis_one)
            both = Concat<axis = 1>(keys_one, values_one)
            cache_out = Unsqueeze(both, axis_one)
        }}""",
}


def make_weights(seed: int) -> dict[str, NDArray[np.float32]]:
    """Return the random weights of a tiny student."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.5) -> NDArray[np.float32]:
        return rng.normal(0, scale, shape).astype(np.float32)

    bias = np.zeros(len(VOCAB), np.float32)
    bias[2] = 5.0  # some captions end, others run into the limit
    return {
        "patch_weight": normal(PATCH * PATCH * 3, E),
        "image_projection": normal(E, D),
        "text_table": normal(len(VOCAB), E),
        "text_projection": normal(E, D),
        "token_table": normal(len(VOCAB), E),
        "position_table": normal(S, E),
        "query_weight": normal(E, E),
        "key_weight": normal(E, E),
        "value_weight": normal(E, E, scale=2.0),
        "output_weight": normal(E, E, scale=1.0),
        "logit_weight": normal(E, len(VOCAB)),
        "logit_bias": bias,
    }


def _constants() -> dict[str, NDArray[np.generic]]:
    return {
        "pixel_scale": np.array(1 / 255, np.float32),
        "half": np.array(0.5, np.float32),
        "grid_shape": np.array([-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3]),
        "patch_shape": np.array([-1, V, PATCH * PATCH * 3]),
        "axis_one": np.array([1]),
        "axis_last": np.array([-1]),
        "pad": np.array(0, np.int32),
        "prefix_heads": np.array([-1, V, N, K]),
        "cache_pads": np.array([0] * 6 + [0, 0, 0, 0, TOKENS, 0]),
        "one_head": np.array([-1, N, 1, K]),
        "order": np.arange(S, dtype=np.int32)[None],
        "row_shape": np.array([-1, 1, S, 1]),
        "zero": np.array(0),
        "one": np.array(1),
        "temperature": np.array(K**-0.5, np.float32),
        "masked": np.array(-1e4, np.float32),
        "mask_shape": np.array([-1, 1, 1, S]),
        "joined_shape": np.array([-1, E]),
    }


def _graph(role: Role, weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    model = parser.parse_model(_HEADER + _GRAPHS[role])
    used = {name for node in model.graph.node for name in node.input}
    for name, value in {**weights, **_constants()}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    return model


def _specs(values: "list[onnx.ValueInfoProto]") -> tuple[TensorSpec, ...]:
    names = {
        onnx.TensorProto.UINT8: "uint8",
        onnx.TensorProto.INT32: "int32",
        onnx.TensorProto.FLOAT: "float32",
    }
    return tuple(
        TensorSpec(
            name="cache" if value.name == "cache_out" else value.name,
            dtype=names[value.type.tensor_type.elem_type],
            shape=(-1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])),
        )
        for value in values
    )


def _tokenizer() -> Tokenizer:
    model = models.BPE(vocab={token: index for index, token in enumerate(VOCAB)}, merges=[], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


Change = Callable[[Manifest], Manifest]


def build_bundle(root: Path, *, seed: int = 3, change: Change = lambda manifest: manifest) -> Path:
    """Write a tiny bundle to `root`; `change` may edit its manifest before it is sealed."""
    staged = root.with_name(f"{root.name}.staged")
    weights = make_weights(seed)
    records = []
    for precision, p50_ms, preferred in (("fp32", 2.0, True), ("int8", 1.0, False)):
        for role in _GRAPHS:
            model = _graph(role, weights)
            path = staged / "graphs" / f"onnx-{precision}" / f"{role}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(model.SerializeToString())
            records.append(
                GraphRecord(
                    role=role,
                    target="onnx",
                    precision=precision,
                    engine="onnxruntime",
                    path=path.relative_to(staged).as_posix(),
                    sha256=file_sha256(path),
                    bytes=path.stat().st_size,
                    inputs=_specs(list(model.graph.input)),
                    outputs=_specs(list(model.graph.output)),
                    latency=Latency(p50_ms=p50_ms, p90_ms=p50_ms, runs=1, threads=1, machine="test"),
                    preferred=preferred,
                )
            )
    _tokenizer().save(str(staged / "tokenizer.json"))
    manifest = Manifest(
        name="tiny",
        model_version=f"tiny-{seed}",
        tasks=("embed", "caption"),
        embedding=EmbeddingSpec(dim=D),
        preprocess=PreprocessSpec(height_px=SIDE, width_px=SIDE),
        tokenizer=TokenizerSpec(vocab_size=len(VOCAB), text_length=T, pad_id=0, bos_id=1, eos_id=2),
        caption=CaptionSpec(prefix_length=V, max_tokens=TOKENS),
        graphs=tuple(records),
        licence="Apache-2.0",
        provenance={"seed": str(seed)},
    )
    write_bundle(root, change(manifest), staged)
    return root


@pytest.fixture(scope="session")
def weights() -> dict[str, NDArray[np.float32]]:
    """The weights inside `bundle_path`."""
    return make_weights(3)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def bundle_copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return Path(shutil.copytree(bundle_path, tmp_path / "copy"))


@pytest.fixture
def rebuilt(tmp_path: Path) -> Callable[[Change], Path]:
    """Builds a bundle with a changed manifest."""
    return lambda change: build_bundle(tmp_path / "rebuilt", change=change)


def _encoded(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Forty PNG files of noise, every one different."""
    return [_encoded(index) for index in range(40)]


@pytest.fixture
def folder(pictures: list[bytes], tmp_path: Path) -> Path:
    """A folder with the forty pictures, some of them in a folder below."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    for index, data in enumerate(pictures):
        name = f"below/{index:02}.PNG" if index % 3 == 0 else f"{index:02}.png"
        (root / name).write_bytes(data)
    return root
