"""CoreML packages, read back from the disk and run: what they answer against the eager student."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.bundle import (
    Bundle,
    CaptionSpec,
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    Role,
    TokenizerSpec,
    tree_digest,
)
from pocketlens.core.errors import BundleIncomplete, EngineError, ExportError
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.blocks import unit_norm
from pocketlens.distill.students.config import PRESETS
from pocketlens.distill.students.student import Student, preprocess_spec
from pocketlens.export.golden import draw_golden_pictures, write_golden
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.mil.engine import MilEngine
from pocketlens.export.mil.package import open_package, run_package
from pocketlens.export.parity import cosines, measure_parity
from pocketlens.export.reference import Feed, Reference, Samples, calibration_feeds, load_pixels, reference_answers
from pocketlens.export.targets.coreml import RECIPES, CoremlTarget
from pocketlens.export.targets.coremlstate import CoremlStateTarget
from pocketlens.export.xctest import write_xctest
from tests.export.conftest import ROLES

# Smallest cosine to the eager student that one text may have. Measured: see docs/coreml.md.
TEXT_COSINE = {"fp32": 0.9999999, "fp16": 0.9999, "int8": 0.999, "palette4": 0.95, "int4": 0.95, "w8a8": 0.99}

Make = Callable[[Role, str], GraphRecord]


def write(
    root: Path, target: CoremlTarget, graph: Graph, precisions: list[str], feeds: list[Feed]
) -> dict[str, GraphRecord]:
    """Export and return records by precision."""
    name = "coremlstate" if target.stateful else "coreml"
    paths = {p: root / f"graphs/{name}-{p}/{graph.role}.mlpackage" for p in precisions}
    target.export(graph, paths, feeds)
    return {
        precision: GraphRecord(
            role=graph.role,
            target=name,
            precision=precision,
            engine=target.engine,
            path=path.relative_to(root).as_posix(),
            sha256=tree_digest(path),
            bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            inputs=target.inputs(graph),
            outputs=target.outputs(graph),
            notes=target.notes(graph),
        )
        for precision, path in paths.items()
    }


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="session")
def packages(root: Path, graphs: dict[str, Graph]) -> dict[Role, GraphRecord]:
    """The tiny student in half precision."""
    target = CoremlTarget()
    return {graph.role: write(root, target, graph, ["fp16"], [])["fp16"] for graph in graphs.values()}


@pytest.fixture(scope="session")
def texts(root: Path, graphs: dict[str, Graph], feeds: dict[str, list[Feed]]) -> dict[str, GraphRecord]:
    """The tiny text encoder in every precision."""
    return write(root, CoremlTarget(), graphs["text_encoder"], list(RECIPES), feeds["text_encoder"])


@pytest.fixture(scope="session")
def stateful(root: Path, graphs: dict[str, Graph]) -> GraphRecord:
    return write(root, CoremlStateTarget(), graphs["caption_decode"], ["fp16"], [])["fp16"]


@pytest.fixture(scope="session")
def manifest(student: tuple[Student, Tokenizer]) -> Manifest:
    model, tokenizer = student
    config = model.config
    return Manifest(
        name="tiny",
        model_version="one",
        tasks=("embed", "caption"),
        embedding=EmbeddingSpec(dim=config.embed_dim),
        preprocess=preprocess_spec(config),
        tokenizer=TokenizerSpec(
            vocab_size=tokenizer.vocab_size,
            text_length=config.text_length,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        ),
        caption=CaptionSpec(prefix_length=model.caption_decoder.visual_tokens, max_tokens=config.caption_tokens),
        graphs=(),
        provenance={},
        licence="Apache-2.0",
    )


@pytest.fixture(scope="session")
def golden(root: Path, manifest: Manifest, student: tuple[Student, Tokenizer]) -> Bundle:
    """A folder with golden files, and no graphs in its manifest."""
    model, tokenizer = student
    pictures = draw_golden_pictures(root, 2, seed=0)
    texts = ["a red circle", "a blue square"]
    pixels = load_pixels(pictures, manifest.preprocess)
    write_golden(root, pictures, texts, reference_answers(model, tokenizer, pixels, tokenizer.encode_batch(texts)))
    return Bundle(root, manifest)


def test_half_precision_answers_like_the_eager_student(
    root: Path, packages: dict[Role, GraphRecord], manifest: Manifest, reference: Reference
) -> None:
    parity = measure_parity(MilEngine(Bundle(root, manifest), packages), reference, manifest)
    for role in ("image_encoder", "text_encoder", "caption_prefill"):
        assert parity[role].metric == "cosine"
        assert 0.9999 <= parity[role].minimum < 1.0000001
    assert parity["caption_decode"].mean == 1.0
    assert parity["caption_decode"].samples == 8
    assert len({tuple(ids) for ids in reference.captions}) > 1


def test_every_precision_of_the_text_encoder_keeps_its_measured_cosine(
    root: Path, texts: dict[str, GraphRecord], manifest: Manifest, reference: Reference
) -> None:
    found = {}
    for precision, record in texts.items():
        engine = MilEngine(Bundle(root, manifest), {"text_encoder": record})
        answers = engine.run("text_encoder", {"ids": reference.ids})["embedding"]
        found[precision] = float(cosines(answers, reference.text_embeddings).min())
    assert {p: c for p, c in found.items() if not c >= TEXT_COSINE[p]} == {}
    assert all(found[precision] < found["fp16"] for precision in ("int8", "palette4", "int4", "w8a8"))
    assert texts["palette4"].bytes < texts["int8"].bytes < texts["fp16"].bytes < texts["fp32"].bytes
    assert texts["int4"].bytes < texts["int8"].bytes


def test_single_precision_is_off_by_rounding_alone(
    root: Path, texts: dict[str, GraphRecord], reference: Reference
) -> None:
    found = run_package(root / texts["fp32"].path, {"ids": reference.ids[:1]})["embedding"]
    assert np.abs(found - reference.text_embeddings[:1]).max() < 2e-6


@pytest.mark.parametrize("precision", ["int8", "palette4", "int4", "w8a8"])
def test_compressed_weights_are_few_levels_near_the_students(
    root: Path, texts: dict[str, GraphRecord], graphs: dict[str, Graph], precision: str
) -> None:
    program = open_package(root / texts[precision].path)
    eager = {tuple(p.shape): p for p in graphs["text_encoder"].module.parameters()}
    feed = next(n for n, p in graphs["text_encoder"].module.named_parameters() if n.endswith("feed.0.weight"))
    original = dict(graphs["text_encoder"].module.named_parameters())[feed].detach()
    assert tuple(original.shape) in eager
    (stored,) = [value for value in program.values.values() if value.shape == original.shape]
    per_row = max(len(row.unique()) for row in stored)
    assert per_row <= {"int8": 255, "palette4": 16, "int4": 16, "w8a8": 255}[precision]
    error = float((stored - original).abs().max() / original.abs().max())
    # Half a step of 127 or of 7 levels; the widest gap of 16 free levels is a fraction of the range.
    assert 0 < error <= {"int8": 0.5 / 127, "palette4": 0.25, "int4": 0.5 / 7, "w8a8": 0.5 / 127}[precision] + 1e-3


def test_eight_bit_activations_are_in_the_package(root: Path, texts: dict[str, GraphRecord]) -> None:
    steps = [step.operator for step in open_package(root / texts["w8a8"].path).steps]
    linears = steps.count("linear")
    assert steps.count("quantize") >= linears
    assert "quantize" not in [step.operator for step in open_package(root / texts["int8"].path).steps]
    softmax = next(i for i, name in enumerate(steps) if name == "softmax")
    assert "quantize" not in steps[softmax - 2 : softmax]  # a mask of -1e4 has no place in 8 bits


def test_only_four_bit_blocks_and_state_need_the_newer_system(
    root: Path, texts: dict[str, GraphRecord], stateful: GraphRecord
) -> None:
    needs = {p: open_package(root / record.path).specification for p, record in texts.items()}
    assert needs == {"fp32": 8, "fp16": 8, "int8": 8, "palette4": 8, "int4": 9, "w8a8": 8}
    assert open_package(root / stateful.path).specification == 9


def test_a_stateful_decode_step_captions_like_the_eager_student(
    root: Path, stateful: GraphRecord, manifest: Manifest, reference: Reference
) -> None:
    program = open_package(root / stateful.path)
    assert [port.name for port in program.inputs] == ["token", "position"]
    assert [port.name for port in program.outputs] == ["logits"]
    assert [(port.name, port.dtype) for port in program.states] == [("cache", "fp16")]
    tokens, caption = manifest.tokenizer, manifest.caption
    assert caption is not None
    for cache, expected in zip(reference.caches, reference.captions, strict=True):
        state = program.new_state()
        state["cache"] = torch.from_numpy(cache).reshape(program.states[0].shape).to(torch.float16)
        ids = [tokens.bos_id]
        for offset in range(len(expected)):
            feed = {
                "token": np.array(ids[-1:], np.int32),
                "position": np.array([caption.prefix_length + offset], np.int32),
            }
            ids.append(int(program.run(feed, state=state)["logits"].argmax()))
        assert ids[1:] == expected


def test_a_stateful_decode_step_stands_behind_the_same_interface(
    root: Path,
    packages: dict[Role, GraphRecord],
    stateful: GraphRecord,
    manifest: Manifest,
    reference: Reference,
) -> None:
    assert [spec.name for spec in (*stateful.inputs, *stateful.outputs)] == ["token", "position", "logits"]
    assert any("float16 state buffer" in note for note in stateful.notes)
    records: dict[Role, GraphRecord] = {**packages, "caption_decode": stateful}
    parity = measure_parity(MilEngine(Bundle(root, manifest), records), reference, manifest)
    assert parity["caption_decode"].mean == 1.0


def test_pixels_enter_as_a_picture(
    root: Path, packages: dict[Role, GraphRecord], manifest: Manifest, reference: Reference
) -> None:
    import coremltools as ct

    record = packages["image_encoder"]
    assert [(s.dtype, s.shape) for s in record.inputs] == [("uint8", (1, 64, 64, 3))]
    assert any("CVPixelBuffer (32BGRA) of exactly 64 x 64" in note for note in record.notes)
    (pixels,) = ct.models.utils.load_spec(str(root / record.path)).description.input
    assert (pixels.type.imageType.width, pixels.type.imageType.height) == (64, 64)
    engine = MilEngine(Bundle(root, manifest), packages)
    right = engine.run("image_encoder", {"pixels": reference.pixels})["embedding"]
    swapped = engine.run("image_encoder", {"pixels": reference.pixels[..., ::-1]})["embedding"]
    assert cosines(right, reference.embeddings).min() > 0.9999 > cosines(swapped, reference.embeddings).max()


def test_swapped_weights_and_a_changed_epsilon_show(
    root: Path, packages: dict[Role, GraphRecord], reference: Reference, tmp_path: Path
) -> None:
    """Faults planted in the files on the disk, one at a time."""
    sound = root / packages["text_encoder"].path
    figures = {}
    for fault in ("none", "weights", "epsilon"):
        path = tmp_path / f"{fault}.mlpackage"
        shutil.copytree(sound, path)
        if fault == "weights":
            _swap_weights(path, "attention_query_weight", "attention_key_weight")
        if fault == "epsilon":
            _change_constant(path, np.float16(1e-6), np.float16(1e-2))
        rows = [run_package(path, {"ids": row[None]}, exact=True)["embedding"] for row in reference.ids]
        figures[fault] = float(cosines(np.concatenate(rows), reference.text_embeddings).min())
    assert figures["none"] > 0.999999
    assert 1 - figures["weights"] > 100 * (1 - figures["none"])
    assert 1 - figures["epsilon"] > 10 * (1 - figures["none"])


def _swap_weights(package: Path, first: str, second: str) -> None:
    import coremltools as ct

    spec = ct.models.utils.load_spec(str(package))
    found = [o for o in _operations(spec) if o.type == "const" and any(n in o.outputs[0].name for n in (first, second))]
    one, two = (operation.attributes["val"].blobFileValue for operation in found)
    assert one.offset != two.offset
    one.offset, two.offset = two.offset, one.offset
    _model_file(package).write_bytes(spec.SerializeToString())


def _change_constant(package: Path, before: np.float16, after: np.float16) -> None:
    import coremltools as ct

    spec = ct.models.utils.load_spec(str(package))
    changed = 0
    for operation in _operations(spec):
        value = operation.attributes["val"].immediateValue.tensor.bytes if operation.type == "const" else None
        if value is not None and value.values == before.tobytes():
            value.values = after.tobytes()
            changed += 1
    assert changed > 0
    _model_file(package).write_bytes(spec.SerializeToString())


def _operations(spec: Any) -> list[Any]:
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return list(block.operations)


def _model_file(package: Path) -> Path:
    (path,) = package.rglob("model.mlmodel")
    return path


def test_an_unknown_precision_and_missing_calibration_are_refused(graphs: dict[str, Graph], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one of fp32, fp16, int8, palette4, int4, w8a8; found 'int3'"):
        CoremlTarget().export(graphs["text_encoder"], {"int3": tmp_path / "x.mlpackage"}, [])
    with pytest.raises(ExportError, match="coreml graph text_encoder: expected calibration inputs"):
        CoremlTarget().export(graphs["text_encoder"], {"w8a8": tmp_path / "x.mlpackage"}, [])


def test_feeds_that_do_not_fit_are_refused(root: Path, packages: dict[Role, GraphRecord], manifest: Manifest) -> None:
    engine = MilEngine(Bundle(root, manifest), packages)
    with pytest.raises(EngineError, match=r"CoreML graph text_encoder: expected ids \(1, 16\); found ids \(1, 5\)"):
        engine.run("text_encoder", {"ids": np.zeros((1, 5), np.int32)})
    with pytest.raises(EngineError, match="found idz"):
        engine.run("text_encoder", {"idz": np.zeros((1, 16), np.int32)})
    with pytest.raises(EngineError, match="an array for the input `ids`; found none"):
        run_package(root / packages["text_encoder"].path, {})
    with pytest.raises(BundleIncomplete):
        MilEngine(Bundle(root, manifest), {}).run("text_encoder", {"ids": np.zeros((1, 16), np.int32)})


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="an ML program with one function"):
        open_package(tmp_path / "nothing.mlpackage")


def test_the_swift_test_holds_the_bundles_figures(
    packages: dict[Role, GraphRecord], golden: Bundle, tmp_path: Path
) -> None:
    swift = write_xctest(_with_graphs(golden, packages), tmp_path / "xctest")
    source = swift.read_text()
    assert "NEVER RUN WHERE IT WAS GENERATED" in source
    assert "{{" not in source
    assert "{%" not in source
    assert 'array(output, "cache_out")' in source
    assert "kCVPixelFormatType_32BGRA" in source
    assert "makeState" not in source
    assert f"beginOfText: Int32 = {golden.manifest.tokenizer.bos_id}" in source
    assert _balanced(source)
    resources = swift.parent / "PocketlensGolden"
    assert {p.name for p in resources.iterdir()} == {
        *(f"{role}.mlpackage" for role in ROLES),
        *("pixels.npy", "embeddings.npy", "text_embeddings.npy", "golden.json"),
    }
    pixels = np.load(resources / "pixels.npy")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 64, 64, 3))
    # Every name that the Swift file asks a package for is one that the package has.
    for role, names in {
        "image_encoder": ("pixels", "embedding", "visual_tokens"),
        "caption_prefill": ("cache",),
    }.items():
        program = open_package(resources / f"{role}.mlpackage")
        assert {port.name for port in (*program.inputs, *program.outputs)} >= set(names)
        assert all(f'"{name}"' in source for name in names)
    assert "platforms: [.macOS(.v14), .iOS(.v17)]" in (swift.parents[2] / "Package.swift").read_text()


def test_the_swift_test_of_a_stateful_variant_fills_the_state(
    packages: dict[Role, GraphRecord], stateful: GraphRecord, golden: Bundle, tmp_path: Path
) -> None:
    records = {r: msgspec.structs.replace(record, target="coremlstate") for r, record in packages.items()}
    whole = _with_graphs(golden, {**records, "caption_decode": stateful})
    swift = write_xctest(whole, tmp_path, variant="coremlstate-fp16")
    source = swift.read_text()
    assert 'state.withMultiArray(for: "cache")' in source
    assert "prediction(from: feed, using: state)" in source
    assert "cache_out" not in source
    assert _balanced(source)
    assert "platforms: [.macOS(.v15), .iOS(.v18)]" in (tmp_path / "Package.swift").read_text()


def test_a_bundle_without_coreml_graphs_gets_no_swift_test(
    packages: dict[Role, GraphRecord], golden: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleIncomplete, match="as coreml-fp16, for CoreML; found none of them"):
        write_xctest(golden, tmp_path)
    foreign = {r: msgspec.structs.replace(g, target="onnx", engine="onnxruntime") for r, g in packages.items()}
    with pytest.raises(BundleIncomplete, match="as onnx-fp16, for CoreML"):
        write_xctest(_with_graphs(golden, foreign), tmp_path, variant="onnx-fp16")


def _with_graphs(bundle: Bundle, records: dict[Role, GraphRecord]) -> Bundle:
    return Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, graphs=tuple(records.values())))


def _balanced(source: str) -> bool:
    """Return whether the brackets outside of strings and comments close in their order."""
    pairs, stack, index = {")": "(", "]": "[", "}": "{"}, [], 0
    while index < len(source):
        if source.startswith("//", index):
            index = source.index("\n", index)
        character = source[index]
        if character == '"' and not (stack and stack[-1] == '"'):
            stack.append('"')
        elif character == '"':
            stack.pop()
        elif source.startswith("\\(", index):
            stack.append("(")
            index += 1
        elif stack and stack[-1] == '"':
            pass
        elif character in pairs.values():
            stack.append(character)
        elif character in pairs and (not stack or stack.pop() != pairs[character]):
            return False
        index += 1
    return not stack


def test_operators_that_the_converter_does_not_know_are_said_in_others(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], manifest: Manifest, tmp_path: Path
) -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Embedding(512, 128)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = torch.ops.aten.alias.default(self.tokens(ids))
            seen = torch.ops.aten.where.ScalarOther(ids[..., None] > 0, x, 0.5)
            unseen = torch.ops.aten.where.ScalarSelf(ids[..., None] > 0, 0.25, x)
            return unit_norm((seen + 0.5 * unseen).mean(dim=1))

    torch.manual_seed(0)
    source = graphs["text_encoder"]
    output = msgspec.structs.replace(source.outputs[0], shape=(-1, 128))
    graph = Graph("text_encoder", Named().eval(), source.inputs, (output,), source.example)
    record = write(tmp_path, CoremlTarget(), graph, ["fp16"], [])["fp16"]
    engine = MilEngine(Bundle(tmp_path, manifest), {"text_encoder": record})
    for feed in feeds["text_encoder"][:2]:
        expected = graph.module(torch.from_numpy(feed["ids"])).detach().numpy()
        assert cosines(engine.run("text_encoder", feed)["embedding"], expected).min() > 0.9999


def test_a_constant_that_a_norm_and_a_linear_layer_share_stays_in_float(
    graphs: dict[str, Graph], feeds: dict[str, list[Feed]], manifest: Manifest, tmp_path: Path
) -> None:
    class Fresh(torch.nn.Module):
        """Biases of norm and layer are the same zeros, which coremltools stores once; a first token is a constant."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Embedding(512, 128)
            self.first = torch.nn.Parameter(torch.randn(1, 1, 128))
            self.norm = torch.nn.LayerNorm(128)
            self.layer = torch.nn.Linear(128, 128)
            torch.nn.init.zeros_(self.layer.bias)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.first.expand(len(ids), -1, -1), self.tokens(ids)], dim=1)
            return unit_norm(self.layer(self.norm(x)).mean(dim=1))

    torch.manual_seed(0)
    source = graphs["text_encoder"]
    output = msgspec.structs.replace(source.outputs[0], shape=(-1, 128))
    graph = Graph("text_encoder", Fresh().eval(), source.inputs, (output,), source.example)
    record = write(tmp_path, CoremlTarget(), graph, ["int4"], [])["int4"]
    engine = MilEngine(Bundle(tmp_path, manifest), {"text_encoder": record})
    for feed in feeds["text_encoder"][:4]:
        expected = graph.module(torch.from_numpy(feed["ids"])).detach().numpy()
        assert cosines(engine.run("text_encoder", feed)["embedding"], expected).min() > 0.97


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nano_in_every_precision_and_with_state(
    student: tuple[Student, Tokenizer], samples: tuple[Samples, Samples], manifest: Manifest, tmp_path: Path
) -> None:
    tokenizer = student[1]
    config = msgspec.structs.replace(PRESETS["nano"], vocab_size=tokenizer.vocab_size, text_length=16)
    torch.manual_seed(0)
    nano = Student(config).train()
    calibration = torch.from_numpy(load_pixels(samples[1].pictures, preprocess_spec(config)))
    with torch.no_grad():
        for _ in range(20):
            nano.image_encoder(calibration)
    nano.eval()
    pixels = load_pixels(samples[0].pictures, preprocess_spec(config))
    ids = tokenizer.encode_batch(samples[0].captions)
    reference = reference_answers(nano, tokenizer, pixels, ids)
    feeds = calibration_feeds(nano, tokenizer, calibration.numpy(), tokenizer.encode_batch(samples[1].captions), seed=0)
    caption = msgspec.structs.replace(
        manifest.caption, prefix_length=nano.caption_decoder.visual_tokens, max_tokens=config.caption_tokens
    )
    layout = msgspec.structs.replace(manifest, caption=caption)
    graphs = student_graphs(nano)
    records: dict[str, dict[Role, GraphRecord]] = {precision: {} for precision in RECIPES}
    for role, graph in graphs.items():
        for precision, record in write(tmp_path, CoremlTarget(), graph, list(RECIPES), feeds[role]).items():
            records[precision][role] = record
    state = write(tmp_path, CoremlStateTarget(), graphs["caption_decode"], ["fp16"], [])["fp16"]
    records["state"] = {**records["fp16"], "caption_decode": state}
    least = {"fp32": 0.999999, "fp16": 0.9999, "state": 0.9999, "int8": 0.99, "palette4": 0.8, "int4": 0.9, "w8a8": 0.9}
    for name, chosen in records.items():
        parity = measure_parity(MilEngine(Bundle(tmp_path, layout), chosen), reference, layout)
        for role in ("image_encoder", "text_encoder", "caption_prefill"):
            assert parity[role].minimum >= least[name], (name, role, parity[role])
        if name in {"fp32", "fp16", "state"}:
            assert parity["caption_decode"].mean == 1.0, (name, parity["caption_decode"])
