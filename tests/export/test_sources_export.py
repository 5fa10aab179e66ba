"""From a model's name to a bundle that verifies, loads, embeds and captions."""

import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import pocketlens
from pocketlens.core.errors import BundleIncomplete
from pocketlens.export import ExportRecipe, Gates, Samples, verify_bundle
from pocketlens.export.device_kit import DEVICE_KIT_FOLDER
from pocketlens.export.recipe import Limits
from pocketlens.export.sources import open_source
from pocketlens.export.sources.exporting import export_direct
from tests.device_kit.toolchain import build
from tests.export import direct_models as models

RECIPE = ExportRecipe(
    variants=("onnx-fp32",),
    calibration_samples=4,
    latency_runs=3,
    golden_samples=2,
    gates=Gates(min_speedup=1e-6, limits={"onnx-fp32/image_encoder": Limits(recall_loss=0.0, cider_loss=0.0)}),
)


@pytest.fixture
def pictures(samples: tuple[Samples, Samples], tmp_path: Path) -> Path:
    test, _ = samples
    path = tmp_path / "pictures.jsonl"
    lines = [{"image": str(p), "captions": [c]} for p, c in zip(test.pictures, test.captions, strict=True)]
    path.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    return path


def self_test(kit: Path, out: Path) -> int:
    """Build the bundle's own self-test and return its exit status: do C and Python agree on this model's texts?"""
    built = build("gcc", kit / "pocketlens_selftest.c", out / "selftest", "-O1", include=[kit])
    return subprocess.run([str(built), str(kit / "tokenizer.bin")], check=False).returncode


@torch.no_grad()
def test_a_dual_encoder_becomes_a_bundle_in_one_call(
    pictures: Path, samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    folder = models.write_open_clip(tmp_path / "model", vision=models.VIT, text=models.CLIP_TEXT)
    name = f"open_clip:local-dir:{folder}"
    bundle = export_direct(name, tmp_path / "bundle", recipe=RECIPE, pictures=pictures)
    manifest = bundle.manifest
    assert (manifest.name, manifest.licence, manifest.tasks, manifest.caption) == (
        "tiny-dual-encoder", "MIT", ("embed",), None,
    )  # fmt: skip
    assert [(t.id, t.licence, t.task) for t in manifest.teachers] == [("tiny-dual-encoder", "MIT", "embedding")]
    assert manifest.model_version == open_source(name).digest[:12]
    assert {g.role for g in manifest.graphs} == {"image_encoder", "text_encoder"}
    assert all(g.parity is not None and g.parity.minimum > 0.9999 for g in manifest.graphs)
    assert "texts have the ids of the model's own tokenizer" in manifest.provenance["tokenizer_agreement"]
    figures = {(q.subject, q.metric): q.value for q in manifest.quality}
    assert figures["onnx-fp32", "r1_i2t"] == figures["student", "r1_i2t"]
    assert figures["onnx-fp32/image_encoder", "r1_i2t"] == figures["student", "r1_i2t"]
    assert verify_bundle(bundle.root).passed
    lens = pocketlens.load(bundle.root)
    original = open_source(name).model.original
    text = open_source(name).tokenizer.encode_batch(["a red ball"])
    np.testing.assert_allclose(lens.embed_text("a red ball"), original.texts(torch.from_numpy(text))[0], atol=1e-5)
    assert lens.embed_image(samples[0].pictures[0]).shape == (24,)
    with pytest.raises(BundleIncomplete):
        lens.caption(samples[0].pictures[0])
    assert self_test(bundle.root / DEVICE_KIT_FOLDER, tmp_path) == 0


def test_a_blip_captioner_becomes_a_bundle_in_one_call(
    pictures: Path, samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    name = f"hf:{models.write_blip(tmp_path / 'model')}"
    bundle = export_direct(name, tmp_path / "bundle", recipe=RECIPE, pictures=pictures, licence="BSD-3-Clause")
    manifest = bundle.manifest
    assert (manifest.tasks, manifest.licence) == (("caption",), "BSD-3-Clause")
    assert {g.role for g in manifest.graphs} == {"image_encoder", "caption_prefill", "caption_decode"}
    parity = {g.role: g.parity for g in manifest.graphs}
    assert parity["caption_decode"] is not None
    assert (parity["caption_decode"].metric, parity["caption_decode"].mean) == ("token_agreement", 1.0)
    figures = {(q.subject, q.metric): q.value for q in manifest.quality}
    assert figures["onnx-fp32", "cider"] == figures["student", "cider"]
    assert figures["onnx-fp32/image_encoder", "cider"] == figures["student", "cider"]
    assert {subject for subject, _ in figures} == {"student", "onnx-fp32", "onnx-fp32/image_encoder"}
    assert verify_bundle(bundle.root).passed
    lens = pocketlens.load(bundle.root)
    assert lens.caption(samples[0].pictures[0]).source == "device"
    with pytest.raises(BundleIncomplete):
        lens.embed_text("a red ball")
    assert self_test(bundle.root / DEVICE_KIT_FOLDER, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "fastvit", "blip"])
def test_int8_of_every_kind_is_lowered_and_measured(kind: str, pictures: Path, tmp_path: Path) -> None:
    text = models.CLIP_TEXT | {"no_causal_mask": True}
    folder = tmp_path / "model"
    if kind == "fastvit":
        name = f"open_clip:local-dir:{models.write_open_clip(folder, vision=models.FASTVIT, text=text, custom=True)}"
    else:
        write = {"clip": models.write_clip, "siglip": models.write_siglip, "blip": models.write_blip}[kind]
        name = f"hf:{write(folder)}"
    gates = Gates(min_speedup=1e-6, int8_min_mean_cosine=0.9)
    recipe = msgspec.structs.replace(RECIPE, variants=("onnx-fp32", "onnx-int8"), gates=gates)
    bundle = export_direct(name, tmp_path / "bundle", recipe=recipe, pictures=pictures)
    assert {g.precision for g in bundle.manifest.graphs} == {"fp32", "int8"}
    assert verify_bundle(bundle.root).passed


@pytest.mark.slow
def test_a_siglip_is_converted_to_coreml_and_runs_in_the_interpreter(pictures: Path, tmp_path: Path) -> None:
    gates = Gates(min_speedup=1e-6, require_parity=("coreml",))
    recipe = msgspec.structs.replace(RECIPE, variants=("coreml-fp32", "coreml-fp16"), gates=gates)
    source = f"hf:{models.write_siglip(tmp_path / 'model')}"
    bundle = export_direct(source, tmp_path / "bundle", recipe=recipe, pictures=pictures)
    parity = {(g.precision, g.role): g.parity for g in bundle.manifest.graphs if g.parity is not None}
    assert len(parity) == 4
    assert min(figure.minimum for figure in parity.values()) > 0.999


@pytest.mark.slow
def test_a_blip_is_converted_to_coreml_and_runs_in_the_interpreter(pictures: Path, tmp_path: Path) -> None:
    gates = Gates(min_speedup=1e-6, require_parity=("coreml",))
    recipe = msgspec.structs.replace(RECIPE, variants=("coreml-fp32", "coreml-fp16"), gates=gates)
    bundle = export_direct(
        f"hf:{models.write_blip(tmp_path / 'model')}", tmp_path / "bundle", recipe=recipe, pictures=pictures
    )
    parity = {(g.precision, g.role): g.parity for g in bundle.manifest.graphs if g.parity is not None}
    assert len(parity) == 6
    assert parity["fp32", "caption_decode"].mean == 1.0
    assert parity["fp16", "caption_prefill"].minimum > 0.999
    assert verify_bundle(bundle.root).passed
