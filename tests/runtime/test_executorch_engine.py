"""The optional engine: the same weights give the same answers as in ONNX Runtime.

The programs hold plain torch modules with the weights of the tiny bundle. They are lowered without a
delegate, which takes a second each; delegated programs of a real student are compared where bundles
are exported.
"""

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role, file_sha256, load_bundle
from pocketlens.core.errors import EngineError
from pocketlens.runtime.engines import Engine, open_engine
from pocketlens.runtime.selection import choose_graphs

pytest.importorskip("executorch", reason="the optional engine is not installed")
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing the lowering uses deprecated parts of the standard library
    from executorch.exir import to_edge

Weights = dict[str, NDArray[np.float32]]
V, N, K, S, E = 4, 2, 4, 12, 8


class Encoder(torch.nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.patch = torch.nn.Parameter(torch.from_numpy(weights["patch_weight"]))
        self.projection = torch.nn.Parameter(torch.from_numpy(weights["image_projection"]))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = (pixels.to(torch.float32) / 255 - 0.5).view(1, 2, 4, 2, 4, 3)
        visual = torch.tanh(grid.permute(0, 1, 3, 2, 4, 5).reshape(1, V, -1) @ self.patch)
        projected = visual.mean(dim=1) @ self.projection
        return projected / (projected * projected).sum(dim=1, keepdim=True).sqrt(), visual


class DecodeStep(torch.nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({name: torch.from_numpy(w) for name, w in weights.items()})
        self.register_buffer("order", torch.arange(S, dtype=torch.int32)[None])

    def forward(
        self, token: torch.Tensor, position: torch.Tensor, cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.weights
        x = w["token_table"][token] + w["position_table"][position]
        here = (self.order == position[:, None])[:, None, :, None]
        keys = torch.where(here, (x @ w["key_weight"]).view(1, N, 1, K), cache[:, 0, 0])
        values = torch.where(here, (x @ w["value_weight"]).view(1, N, 1, K), cache[:, 0, 1])
        mask = (self.order > position[:, None]).to(torch.float32)[:, None, None] * -1e4
        query = (x @ w["query_weight"]).view(1, N, 1, K)
        attention = torch.softmax(query @ keys.transpose(2, 3) * K**-0.5 + mask, dim=-1)
        x = x + (attention @ values).reshape(1, E) @ w["output_weight"]
        logits = x @ w["logit_weight"] + w["logit_bias"]
        return logits, torch.stack([keys, values], dim=1)[:, None]


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def programs(bundle: Bundle, weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> dict[Role, GraphRecord]:
    """Records of two lowered programs; their paths are absolute, so they need not be in the bundle."""
    modules: dict[Role, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {
        "image_encoder": (Encoder(weights), (torch.zeros(1, 8, 8, 3, dtype=torch.uint8),)),
        "caption_decode": (
            DecodeStep(weights),
            (
                torch.ones(1, dtype=torch.int32),
                torch.full((1,), V, dtype=torch.int32),
                torch.zeros(1, 1, 2, N, S, K),
            ),
        ),
    }
    records: dict[Role, GraphRecord] = {}
    for role, (module, example) in modules.items():
        path = tmp_path_factory.mktemp("programs") / f"{role}.pte"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lowering warns about its own code
            path.write_bytes(to_edge(torch.export.export(module.eval(), example)).to_executorch().buffer)
        records[role] = msgspec.structs.replace(
            bundle.graph(role, target="onnx", precision="fp32"),
            target="executorch",
            engine="executorch",
            path=str(path),
            sha256=file_sha256(path),
            bytes=path.stat().st_size,
        )
    return records


@pytest.fixture(scope="module")
def engine(bundle: Bundle, programs: dict[Role, GraphRecord]) -> Engine:
    return open_engine("executorch", bundle, programs, threads=1)


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Engine:
    return open_engine("onnxruntime", bundle, choose_graphs(bundle, engine="onnxruntime"), threads=1)


def test_a_batch_agrees_with_onnx_runtime(engine: Engine, reference: Engine) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    step = {
        "token": rng.integers(0, 31, 5).astype(np.int32),
        "position": np.array([4, 5, 7, 10, 11], np.int32),
        "cache": rng.normal(size=(5, 1, 2, N, S, K)).astype(np.float32),
    }
    for role, inputs in (("image_encoder", {"pixels": pixels}), ("caption_decode", step)):
        found, expected = engine.run(role, inputs), reference.run(role, inputs)  # type: ignore[arg-type]
        assert list(found) == list(expected)
        for name, value in found.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_the_answer_of_a_call_survives_the_next_call(engine: Engine) -> None:
    zeros, ones = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    first = engine.run("image_encoder", {"pixels": zeros})["embedding"]
    kept = first.copy()
    engine.run("image_encoder", {"pixels": ones})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("inputs", [{"pixels": np.zeros((1, 9, 9, 3), np.uint8)}, {}])
def test_inputs_that_do_not_fit_are_an_engine_error(engine: Engine, inputs: dict[str, NDArray[np.uint8]]) -> None:
    with pytest.raises(EngineError, match="image_encoder"):
        engine.run("image_encoder", inputs)


@pytest.mark.parametrize("content", [b"", b"no program at all" * 100, None])
def test_a_file_that_is_no_program_is_an_engine_error(
    bundle: Bundle, programs: dict[Role, GraphRecord], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.pte"
    if content is not None:
        path.write_bytes(content)
    record = msgspec.structs.replace(programs["image_encoder"], path=str(path))
    broken = open_engine("executorch", bundle, {"image_encoder": record})
    with pytest.raises(EngineError, match=r"broken\.pte"):
        broken.run("image_encoder", {"pixels": np.zeros((1, 8, 8, 3), np.uint8)})
