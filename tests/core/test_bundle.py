"""A bundle is a closed world: whatever is changed in it is refused before anything is parsed."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlens.core import bundle as bundles
from pocketlens.core.bundle import (
    Bundle,
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    load_bundle,
    tree_digest,
    write_bundle,
)
from pocketlens.core.errors import (
    BundleError,
    BundleIncomplete,
    BundleMissing,
    BundleSchemaError,
    BundleTampered,
    StorageFull,
)
from pocketlens.core.preprocess import PreprocessSpec


def _manifest(staged: Path) -> Manifest:
    path = "graphs/onnx-fp32/image_encoder.onnx"
    pixels = TensorSpec(name="pixels", dtype="uint8", shape=(-1, 8, 8, 3))
    embedding = TensorSpec(name="embedding", dtype="float32", shape=(-1, 4))
    graph = GraphRecord(
        role="image_encoder",
        target="onnx",
        precision="fp32",
        engine="onnxruntime",
        path=path,
        sha256=tree_digest(staged / path),
        bytes=5,
        inputs=(pixels,),
        outputs=(embedding,),
    )
    return Manifest(
        name="test",
        model_version="test-1",
        tasks=("embed",),
        embedding=EmbeddingSpec(dim=4),
        preprocess=PreprocessSpec(height_px=8, width_px=8),
        tokenizer=TokenizerSpec(vocab_size=10, text_length=8, pad_id=0, bos_id=1, eos_id=2),
        caption=None,
        graphs=(graph,),
        licence="Apache-2.0",
        provenance={},
    )


def _stage(folder: Path) -> Path:
    (folder / "graphs" / "onnx-fp32").mkdir(parents=True)
    (folder / "graphs" / "onnx-fp32" / "image_encoder.onnx").write_bytes(b"graph")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    staged = _stage(tmp_path / "staged")
    return write_bundle(tmp_path / "bundle", _manifest(staged), staged).root


def _seal(root: Path) -> None:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    (root / "SHA256SUMS").write_text("".join(f"{file_sha256(root / name)}  {name}\n" for name in names))


def test_what_was_written_is_what_is_loaded(root: Path) -> None:
    loaded = load_bundle(root)
    assert loaded.manifest.name == "test"
    assert loaded.path(loaded.graph("image_encoder", target="onnx", precision="fp32")).read_bytes() == b"graph"


def test_a_graph_that_is_not_there_names_those_that_are(root: Path) -> None:
    with pytest.raises(BundleIncomplete, match="onnx-fp32"):
        load_bundle(root).graph("image_encoder", target="onnx", precision="int8")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(root: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in root.rglob("*") if p.is_file())))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) * 8 - 1))
    broken = bytearray(original)
    broken[position // 8] ^= 1 << position % 8
    path.write_bytes(broken)
    try:
        with pytest.raises(BundleError):
            load_bundle(root)
    finally:
        path.write_bytes(original)
    load_bundle(root)


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "graphs" / "onnx-fp32" / "image_encoder.onnx").unlink()
    with pytest.raises(BundleMissing, match=r"image_encoder\.onnx"):
        load_bundle(root)


def test_an_extra_file_is_named(root: Path) -> None:
    (root / "graphs" / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleTampered, match=r"graphs/extra\.bin"):
        load_bundle(root)


def test_a_link_is_refused_even_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    (root / "tokenizer.json").rename(outside)
    (root / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleTampered, match=r"link.*tokenizer\.json"):
        load_bundle(root)


@pytest.mark.parametrize("path", ["../tokenizer.json", "/etc/hostname"])
def test_a_listed_path_that_leaves_the_bundle_is_refused(root: Path, path: str) -> None:
    sums = (root / "SHA256SUMS").read_text()
    (root / "SHA256SUMS").write_text(sums + f"{'0' * 64}  {path}\n")
    with pytest.raises(BundleTampered, match="relative path"):
        load_bundle(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version up to 1"),
        ({"surprise": True}, "surprise"),
        ({"embedding": {"dim": "four"}}, "dim"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(root: Path, change: dict[str, object], message: str) -> None:
    manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_bytes(msgspec.json.encode({**manifest, **change}))
    _seal(root)
    with pytest.raises(BundleSchemaError, match=message):
        load_bundle(root)


def test_a_newer_schema_is_told_apart_even_when_everything_else_changed(root: Path) -> None:
    (root / "manifest.json").write_text('{"schema_version": 7, "nothing": "as before"}')
    _seal(root)
    with pytest.raises(BundleSchemaError, match="Upgrade pocketlens"):
        load_bundle(root)


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder"])
def test_what_is_no_bundle_at_all_is_missing(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bundle"
    if what == "a file":
        path.write_bytes(b"x")
    elif what == "an empty folder":
        path.mkdir()
    with pytest.raises(BundleMissing):
        load_bundle(path)


def test_a_new_bundle_replaces_the_old_one(root: Path, tmp_path: Path) -> None:
    staged = _stage(tmp_path / "again")
    manifest = msgspec.structs.replace(_manifest(staged), model_version="test-2")
    assert write_bundle(root, manifest, staged).manifest.model_version == "test-2"
    assert load_bundle(root).manifest.model_version == "test-2"
    assert not staged.exists()


def test_a_full_disk_leaves_the_old_bundle(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = _stage(tmp_path / "again")
    manifest = msgspec.structs.replace(_manifest(staged), model_version="test-2")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageFull):
        write_bundle(root, manifest, staged)
    monkeypatch.undo()
    assert load_bundle(root).manifest.model_version == "test-1"


def test_the_digest_of_a_folder_depends_on_names_and_bytes(tmp_path: Path) -> None:
    for name, file, data in (("a", "x", b"1"), ("b", "x", b"1"), ("c", "y", b"1"), ("d", "x", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(data)
    a, b, c, d = (tree_digest(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_bundle_is_what_load_returns(root: Path) -> None:
    assert isinstance(bundles.load_bundle(root), Bundle)
