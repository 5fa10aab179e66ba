import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

import pocketlens
from pocketlens.core.bundle import Bundle, Quality, load_bundle, tree_digest
from pocketlens.core.errors import DataError, ExportError, ParityGateFailed, StorageFull
from pocketlens.export import Evaluation, ExportRecipe, Samples, export_student, lowering, update_manifest
from pocketlens.export.graphs import Graph
from pocketlens.export.reference import Feed, Reference
from pocketlens.export.targets import Target, open_target
from tests.export.conftest import RECIPE, ROLES


def test_exported_bundle_loads_and_answers_like_the_eager_student(
    bundle: Bundle, reference: Reference, samples: tuple[Samples, Samples]
) -> None:
    lens = pocketlens.load(bundle.root, precision="fp32", threads=1)
    vectors = np.stack([lens.embed_image(picture) for picture in samples[0].pictures])
    np.testing.assert_allclose(vectors, reference.embeddings, atol=1e-4)
    texts = lens.embed_texts(list(samples[0].captions))
    np.testing.assert_allclose(texts, reference.text_embeddings, atol=1e-4)
    captions = [list(lens.caption(picture).token_ids) for picture in samples[0].pictures]
    assert captions == reference.captions


def test_every_graph_is_recorded_with_what_was_measured(bundle: Bundle) -> None:
    graphs = bundle.manifest.graphs
    assert [(g.precision, g.role) for g in graphs] == [(p, r) for p in ("fp32", "int8") for r in ROLES]
    for graph in graphs:
        path = bundle.path(graph)
        assert graph.sha256 == tree_digest(path)
        assert graph.bytes == path.stat().st_size
        assert graph.parity is not None
        assert graph.parity.samples == 8
        assert graph.latency is not None
        assert graph.latency.p90_ms >= graph.latency.p50_ms > 0
        assert graph.tools["onnx"]
        for spec in (*graph.inputs, *graph.outputs):
            assert spec.shape[0] == -1
    decode = bundle.graph("caption_decode", target="onnx", precision="fp32")
    assert [spec.name for spec in decode.outputs] == ["logits", "cache"]
    assert decode.notes == ("In the file the output `cache` is called `cache_out`.",)


def test_quantized_graphs_are_smaller_and_marked_when_slower(bundle: Bundle) -> None:
    for role in ROLES:
        fp32, int8 = (bundle.graph(role, target="onnx", precision=p) for p in ("fp32", "int8"))
        assert int8.bytes < 0.75 * fp32.bytes
        assert fp32.speedup_vs_fp32 is None
        assert fp32.latency is not None
        assert int8.latency is not None
        assert int8.speedup_vs_fp32 == pytest.approx(fp32.latency.p50_ms / int8.latency.p50_ms)
        assert int8.preferred == (int8.speedup_vs_fp32 >= 1)
        assert any("times the speed of its fp32 twin" in note for note in int8.notes)


def test_nothing_in_a_bundle_tells_where_it_was_made(bundle: Bundle, student_folder: Path) -> None:
    secrets = [os.fsencode(path) for path in (Path.cwd(), Path(pocketlens.__file__).parent, student_folder)]
    for path in bundle.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_evaluation_and_provenance_reach_manifest_and_card(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert [entry.value for entry in manifest.quality] == [0.5, 0.5, 0.49]
    assert manifest.confidence is not None
    assert manifest.confidence.fitted_on == 8
    assert manifest.provenance["data"] == "scenes"
    assert len(manifest.model_version) == 12
    card = (bundle.root / "MODEL_CARD.md").read_text()
    for words in ("# tiny", manifest.model_version, "| someone | embedding | MIT |", "0.4900", "onnx-int8"):
        assert words in card


def test_a_variant_that_loses_too_much_quality_is_not_published(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_again: "Export"
) -> None:
    def evaluate(candidate: Bundle) -> Evaluation:
        figures = {"student": 0.5, "onnx-int8": 0.4}
        return Evaluation(
            quality=tuple(Quality(subject=s, metric="r1_i2t", value=v, samples=8) for s, v in figures.items())
        )

    _take_graphs_from(bundle, monkeypatch)
    with pytest.raises(ParityGateFailed, match=r"onnx-int8 r1_i2t: expected at most 0.02 below .* found 0.4000"):
        export_again(tmp_path / "out", evaluate)
    assert not list(tmp_path.iterdir())


def test_a_target_that_fails_is_named_and_the_earlier_bundle_stays(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_again: "Export"
) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle.root, out)
    _take_graphs_from(bundle, monkeypatch, failure=("caption_prefill", RuntimeError("no such operator")))
    with pytest.raises(ExportError, match=r"onnx graph caption_prefill: .* RuntimeError: no such operator"):
        export_again(out)
    assert load_bundle(out).manifest == bundle.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_and_the_earlier_bundle_stays(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_again: "Export"
) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle.root, out)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _take_graphs_from(bundle, monkeypatch, failure=("caption_decode", full))
    with pytest.raises(StorageFull, match="No space left"):
        export_again(out)
    assert load_bundle(out).manifest == bundle.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_export_replaces_the_first_and_says_the_same(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_again: "Export"
) -> None:
    _take_graphs_from(bundle, monkeypatch)
    first = export_again(tmp_path / "out")
    second = export_again(tmp_path / "out")
    assert first.manifest.model_version == second.manifest.model_version == bundle.manifest.model_version
    assert [g.parity for g in first.manifest.graphs] == [g.parity for g in second.manifest.graphs]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_int8_bundle_is_small_and_needs_no_fp32_graph(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_again: "Export"
) -> None:
    _take_graphs_from(bundle, monkeypatch)
    slim = export_again(tmp_path / "out", variants=("onnx-int8",))
    assert slim.variants("image_encoder") == (("onnx", "int8"),)
    # Nothing else could run in its place, so even a slower graph stays the default.
    assert all(graph.preferred and graph.speedup_vs_fp32 for graph in slim.manifest.graphs)
    assert pocketlens.load(slim.root).precision == "int8"


def test_updating_a_manifest_keeps_everything_else(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    quality = (Quality(subject="student", metric="cider", value=1.25, samples=4),)
    updated = update_manifest(root, quality=quality)
    assert updated.manifest.quality == load_bundle(root).manifest.quality == quality
    assert updated.manifest.graphs == bundle.manifest.graphs
    assert "1.2500" in (root / "MODEL_CARD.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_samples_are_drawn_by_seed_and_never_empty(samples: tuple[Samples, Samples]) -> None:
    drawn = samples[1].draw(5, seed=1)
    assert drawn == samples[1].draw(5, seed=1) != samples[1].draw(5, seed=2)
    assert len(drawn.pictures) == len(drawn.captions) == 5
    with pytest.raises(DataError, match="at least one picture"):
        Samples([], ["a ball"])


Export = Callable[..., Bundle]


@pytest.fixture
def export_again(student_folder: Path, samples: tuple[Samples, Samples]) -> Export:
    """Export the tiny student again; lowering is replaced by the test, all else is real."""

    def export(
        out: Path,
        evaluate: Callable[[Bundle], Evaluation] | None = None,
        variants: Sequence[str] = ("onnx-fp32", "onnx-int8"),
    ) -> Bundle:
        test, calibration = samples
        recipe = _recipe(variants)
        return export_student(
            student_folder,
            out,
            recipe=recipe,
            test=test,
            calibration=calibration,
            name="tiny",
            licence="Apache-2.0",
            evaluate=evaluate,
        )

    return export


def _recipe(variants: Sequence[str]) -> ExportRecipe:
    return msgspec.convert({**msgspec.to_builtins(RECIPE), "variants": list(variants), "latency_runs": 3}, ExportRecipe)


class _Copying:
    """A target that takes the files of a bundle that was exported before, to save the time of lowering."""

    engine = "onnxruntime"
    suffix = ".onnx"

    def __init__(self, bundle: Bundle, failure: tuple[str, Exception] | None) -> None:
        self._bundle = bundle
        self._failure = failure

    def export(self, graph: Graph, paths: Mapping[str, Path], feeds: Sequence[Feed]) -> None:
        if self._failure is not None and graph.role == self._failure[0]:
            raise self._failure[1]
        for precision, path in paths.items():
            record = self._bundle.graph(graph.role, target="onnx", precision=precision)
            shutil.copyfile(self._bundle.path(record), path)


def _take_graphs_from(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failure: tuple[str, Exception] | None = None
) -> None:
    def opened(name: str) -> "Target | _Copying":
        return _Copying(bundle, failure) if name == "onnx" else open_target(name)

    monkeypatch.setattr(lowering, "open_target", opened)


def test_progress_is_reported_for_every_job(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student_folder: Path
) -> None:
    _take_graphs_from(bundle, monkeypatch)
    told: list[tuple[str, int, int]] = []
    lowering.lower(
        str(student_folder),
        {"onnx-fp32": tmp_path},
        {role: [] for role in ROLES},
        workers=0,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert told == [(f"onnx {role}", index + 1, 4) for index, role in enumerate(ROLES)]
