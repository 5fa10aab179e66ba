import math
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketlens.core.bundle import Bundle, write_bundle
from pocketlens.core.errors import BundleSchemaError, BundleTampered, EngineError
from pocketlens.core.golden import read_golden
from pocketlens.export import verify_bundle


def resealed(bundle: Bundle, root: Path, **changes: object) -> Path:
    """Write a copy of `bundle` whose sums fit whatever was done to it."""
    manifest = msgspec.structs.replace(bundle.manifest, **changes)  # type: ignore[arg-type]
    return write_bundle(root.with_name("sealed"), manifest, root).root


def test_a_sound_bundle_passes_every_check(bundle: Bundle) -> None:
    report = verify_bundle(bundle.root)
    assert report.passed
    assert report.skipped == ()
    # The stages of the golden vectors have tests of their own.
    assert [(c.stage, c.subject) for c in report.checks if c.stage == "pixels" or c.subject != "preprocess"] == [
        ("pixels", "preprocess"),
        *((stage, f"onnx-{p}") for p in ("fp32", "int8") for stage in ("embedding", "text_embedding", "captions")),
    ]
    assert all(check.figure == 1 for check in report.checks if check.stage in ("pixels",))


def test_verifying_works_without_torch(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from pocketlens.export import verify_bundle; print(verify_bundle(Path(sys.argv[1])).passed)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle.root)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_one_flipped_bit_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    path = root / "golden" / "pixels.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleTampered, match=r"pixels\.npy"):
        verify_bundle(root)


def test_other_pixels_are_named_as_such(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    squashed = msgspec.structs.replace(bundle.manifest.preprocess, fit="squash")
    report = verify_bundle(resealed(bundle, root, preprocess=squashed))
    failed = [(c.stage, c.subject) for c in report.checks if not c.passed]
    assert failed[0] == ("pixels", "preprocess")
    assert {subject for _, subject in failed} == {"preprocess"}


def test_a_wrong_graph_is_named_as_such(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    path = root / "golden" / "text_embeddings.npy"
    np.save(path, np.load(path)[::-1])
    report = verify_bundle(resealed(bundle, root))
    assert not report.passed
    assert {c.stage for c in report.checks if not c.passed} == {"text_embedding"}


def test_golden_files_of_another_form_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    (root / "golden" / "golden.json").write_text('{"pictures": 3}')
    with pytest.raises(BundleSchemaError, match="golden"):
        verify_bundle(resealed(bundle, root))


def test_variants_of_other_machines_are_skipped_by_name(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    foreign = tuple(
        msgspec.structs.replace(g, engine="litert", target="litert") if g.precision == "int8" else g
        for g in bundle.manifest.graphs
    )
    report = verify_bundle(resealed(bundle, root, graphs=foreign))
    assert report.skipped == ("litert-int8",)
    assert report.passed


def test_coreml_graphs_without_parity_are_skipped_and_others_are_read(bundle: Bundle, tmp_path: Path) -> None:
    def coreml(folder: str, **changes: object) -> Path:
        shutil.copytree(bundle.root, tmp_path / folder / "copy")
        graphs = tuple(
            msgspec.structs.replace(g, engine="coreml", target="coreml", **changes) if g.precision == "int8" else g
            for g in bundle.manifest.graphs
        )
        return resealed(bundle, tmp_path / folder / "copy", graphs=graphs)

    assert verify_bundle(coreml("unmeasured", parity=None)).skipped == ("coreml-int8",)
    measured = coreml("measured")
    with pytest.raises(EngineError, match="CoreML package"):  # it is an ONNX file
        verify_bundle(measured)


def test_a_variant_that_lacks_a_graph_is_checked_with_what_it_has(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    kept = [g for g in bundle.manifest.graphs if (g.precision, g.role) != ("int8", "image_encoder")]
    (root / "graphs" / "onnx-int8" / "image_encoder.onnx").unlink()
    report = verify_bundle(resealed(bundle, root, graphs=tuple(kept)))
    assert report.passed
    assert [check.stage for check in report.checks if check.subject == "onnx-int8"] == ["text_embedding"]


@pytest.mark.parametrize(("share", "measured_on"), [(0.3, 200), (0.75, 8), (1.0, 8), (0.98, 200)])
def test_a_quantized_graph_may_differ_in_so_many_captions_as_its_parity_explains(
    bundle: Bundle, tmp_path: Path, share: float, measured_on: int
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(bundle.root, root)
    graphs = tuple(
        msgspec.structs.replace(graph, parity=msgspec.structs.replace(graph.parity, mean=share, samples=measured_on))
        if graph.role == "caption_decode" and graph.precision == "int8" and graph.parity is not None
        else graph
        for graph in bundle.manifest.graphs
    )
    checks = {
        c.subject: c for c in verify_bundle(resealed(bundle, root, graphs=graphs)).checks if c.stage == "captions"
    }
    assert checks["onnx-fp32"].limit == 1.0
    count = len(read_golden(bundle.root).golden.caption_ids)
    least = round(checks["onnx-int8"].limit * count)

    def chance_of_fewer_than(equal: int) -> float:
        """As from Pólya's urn: a draw adds a ball of its colour to those that parity and half a caption put in."""
        total = 0.0
        for k in range(equal):
            same, other, chance = share * measured_on + 0.5, (1 - share) * measured_on + 0.5, float(math.comb(count, k))
            for draw in range(count):
                chance *= (same + draw if draw < k else other + draw - k) / (same + other + draw)
            total += chance
        return total

    assert chance_of_fewer_than(least) <= 0.001 < chance_of_fewer_than(least + 1)
