from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pocketlens.core.bundle import Bundle, GraphRecord, tree_digest
from pocketlens.core.errors import DataError, ExportError
from pocketlens.export import ExportRecipe, Gates, Samples, export_student, verify_bundle
from pocketlens.export.folding import fold_batch_norm
from pocketlens.export.graphs import Graph
from pocketlens.export.lowering import lower
from pocketlens.export.mil.engine import PARITY_NOTE
from pocketlens.export.parity import cosines
from pocketlens.export.quiet import quiet
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.targets import open_target
from pocketlens.runtime.decoding import Limits, greedy
from pocketlens.runtime.engines import open_engine
from tests.export.conftest import ROLES


def test_folding_batch_norms_changes_no_answer(graphs: dict[str, Graph]) -> None:
    graph = graphs["image_encoder"]
    module = torch.export.export(graph.module, graph.example).module()
    targets = [node.target for node in module.graph.nodes]
    assert torch.ops.aten.batch_norm.default in targets
    with torch.no_grad():
        before = module(*graph.example)
        folded = fold_batch_norm(module)
        after = folded(*graph.example)
    targets = [node.target for node in folded.graph.nodes]
    assert torch.ops.aten.batch_norm.default not in targets
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_onnx_graphs_take_any_batch(bundle: Bundle, reference: Reference) -> None:
    chosen = {g.role: g for g in bundle.manifest.graphs if g.precision == "int8"}
    engine = open_engine("onnxruntime", bundle, chosen)
    together = engine.run("image_encoder", {"pixels": reference.pixels[:5]})["embedding"]
    alone = [engine.run("image_encoder", {"pixels": row[None]})["embedding"][0] for row in reference.pixels[:5]]
    assert cosines(np.stack(alone), together).min() > 0.9999


def test_quantized_weights_cannot_saturate_16_bit_sums(bundle: Bundle) -> None:
    model = onnx.load(bundle.path(bundle.graph("image_encoder", target="onnx", precision="int8")))
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
    quantized = [w for w in weights if w.dtype == np.int8 and w.ndim >= 2]
    assert len(quantized) >= 15
    assert max(int(np.abs(w.astype(int)).max()) for w in quantized) <= 64


def test_logits_are_computed_in_float(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path(bundle.graph("caption_decode", target="onnx", precision="int8"))).graph
    types = {t.name: t.data_type for t in graph.initializer}
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert {types[name] for name in last.input if name in types} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.INT8 in types.values()


def test_pixels_enter_the_first_quantized_convolution_as_they_are(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path(bundle.graph("image_encoder", target="onnx", precision="int8"))).graph
    assert [node.op_type for node in graph.node if "pixels" in node.input] == ["Transpose"]
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    turned = next(node.output[0] for node in graph.node if "pixels" in node.input)
    entry = next(node for node in graph.node if turned in node.input)
    assert entry.op_type == "DequantizeLinear"
    assert [float(constants[name]) for name in entry.input[1:]] == [1.0, 128.0] or constants[entry.input[2]] in (
        127,
        128,
    )


def test_executorch_captions_have_the_eager_ids(
    graphs: dict[str, Graph], bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    target, graph = open_target("executorch"), graphs["caption_decode"]
    path = tmp_path / "decode.pte"
    target.export(graph, {"fp32": path}, [])
    record = _record(target, graph, path, tmp_path, "fp32")
    engine = open_engine("executorch", Bundle(tmp_path, bundle.manifest), {"caption_decode": record}, threads=1)

    def step(token: Any, position: Any, cache: Any) -> tuple[Any, Any]:
        out = engine.run("caption_decode", {"token": token, "position": position, "cache": cache})
        return out["logits"], out["cache"]

    tokens, caption = bundle.manifest.tokenizer, bundle.manifest.caption
    assert caption is not None
    limits = Limits(
        bos_id=tokens.bos_id, eos_id=tokens.eos_id, start=caption.prefix_length, max_tokens=caption.max_tokens
    )
    found = [list(hypothesis.token_ids) for hypothesis in greedy(step, reference.caches, limits)]
    assert found == reference.captions
    assert len({tuple(ids) for ids in found}) > 1


def test_coreml_packages_hold_half_precision_and_say_that_they_cannot_run_here(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    with quiet():  # it imports executorch, which warns
        import coremltools as ct

    target, graph = open_target("coreml"), graphs["caption_decode"]
    path = tmp_path / "decode.mlpackage"
    target.export(graph, {"fp16": path}, [])
    assert sorted(p.name for p in path.rglob("*") if p.is_file()) == ["Manifest.json", "model.mlmodel", "weight.bin"]
    weights = sum(p.numel() for p in graph.module.parameters())
    stored = next(path.rglob("weight.bin")).stat().st_size
    assert 1.5 * weights < stored < 2.5 * weights

    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    found = {i.name: tuple(i.type.multiArrayType.shape) for i in (*spec.input, *spec.output)}
    ins, outs = target.inputs(graph), target.outputs(graph)
    assert found == {**{s.name: s.shape for s in ins}, "logits": outs[0].shape, "cache_out": outs[1].shape}
    assert all(len(shape) <= 5 for shape in found.values())
    notes = " ".join(target.notes(graph))
    assert "needs an Apple device" in notes
    assert "`cache` is called `cache_out`" in notes


def test_coreml_takes_a_picture(graphs: dict[str, Graph]) -> None:
    (pixels,) = open_target("coreml").inputs(graphs["image_encoder"])
    assert (pixels.dtype, pixels.shape) == ("uint8", (1, 64, 64, 3))


def test_a_student_that_begins_otherwise_cannot_have_its_normalisation_folded(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], tmp_path: Path
) -> None:
    class Other(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = pixels.to(torch.float32).mean(dim=(1, 2))
            return x, x[:, None]

    source = graphs["image_encoder"]
    graph = Graph("image_encoder", Other().eval(), source.inputs, source.outputs, source.example)
    with pytest.raises(ExportError, match="begins with cast, transpose, multiply, add and a convolution"):
        open_target("onnx").export(graph, {"int8": tmp_path / "x.onnx"}, feeds["image_encoder"])


def _record(target: Any, graph: Graph, path: Path, root: Path, precision: str) -> GraphRecord:
    return GraphRecord(
        role=graph.role,
        target="executorch",
        precision=precision,
        engine=target.engine,
        path=path.relative_to(root).as_posix(),
        sha256=tree_digest(path),
        bytes=path.stat().st_size,
        inputs=target.inputs(graph),
        outputs=target.outputs(graph),
    )


@pytest.mark.slow
def test_every_variant_goes_through_the_whole_pipeline_in_worker_processes(
    student_folder: Path, samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    test, calibration = samples
    recipe = ExportRecipe(
        calibration_samples=12, latency_runs=20, golden_samples=2, workers=2,
        gates=Gates(int8_min_mean_cosine=0.9, accept_slower=ROLES),
    )  # fmt: skip
    bundle = export_student(
        student_folder, tmp_path / "all", recipe=recipe, test=test, calibration=calibration,
        name="tiny", licence="Apache-2.0",
    )  # fmt: skip
    assert len(bundle.manifest.graphs) == 5 * 4
    decode = bundle.graph("caption_decode", target="executorch", precision="fp32")
    assert decode.parity is not None
    assert decode.parity.mean == 1
    picture = bundle.graph("image_encoder", target="coreml", precision="fp16")
    assert picture.parity is not None
    assert picture.parity.minimum > 0.999
    assert picture.latency is None
    assert PARITY_NOTE in picture.notes
    report = verify_bundle(bundle.root)
    assert report.passed
    assert report.skipped == ()
    assert {"embedding", "text_embedding", "captions"} == {
        check.stage for check in report.checks if check.subject == "coreml-fp16"
    }


@pytest.mark.slow
def test_an_error_in_a_worker_process_arrives_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="student folder"):
        lower(
            str(tmp_path),
            {"onnx-fp32": tmp_path},
            {"image_encoder": []},
            workers=1,
            progress=lambda what, done, total: None,
        )
