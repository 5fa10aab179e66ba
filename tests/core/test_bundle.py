"""A bundle is a closed world: whatever is changed in it is refused before anything is parsed."""

import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlens.core import bundle as bundles
from pocketlens.core.bundle import (
    Bundle,
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
from pocketlens.core.seal import parse_sums
from tests.core.small_bundle import small_bundle, small_manifest, stage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "bundle")


def _seal(root: Path) -> None:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    (root / "SHA256SUMS").write_text("".join(f"{file_sha256(root / name)}  {name}\n" for name in names))


def test_what_was_written_is_what_is_loaded(root: Path) -> None:
    loaded = load_bundle(root)
    assert loaded.manifest.name == "test"
    assert loaded.path(loaded.graph("image_encoder", target="onnx", precision="fp32")).read_bytes() == b"graph bytes"


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


@pytest.mark.parametrize("seed", range(3))
def test_every_file_refuses_its_flipped_bits(seed: int, root: Path) -> None:
    numbers = random.Random(seed)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        original = path.read_bytes()
        bits = 8 * len(original)
        for position in numbers.sample(range(bits), min(bits, 60)):
            broken = bytearray(original)
            broken[position // 8] ^= 1 << position % 8
            path.write_bytes(broken)
            with pytest.raises(BundleError):
                load_bundle(root)
        path.write_bytes(original)
    load_bundle(root)


def test_every_single_bit_of_the_sums_counts(root: Path) -> None:
    """A newline is one bit away from a vertical tab, at which str.splitlines() splits as well."""
    data = (root / "SHA256SUMS").read_bytes()
    listed = parse_sums(data, "sums")
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        try:
            found = parse_sums(bytes(broken), "sums")
        except BundleTampered:
            continue
        assert found.keys() != listed.keys() or found != listed  # another name or digest: the folder differs


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: b"\n" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\x0b", 1),
        lambda data: data.replace(b"  ", b" *", 1),
        lambda data: data + data,
        lambda data: data.upper(),
        lambda data: data + b"0" * 64 + b"  SHA256SUMS\n",
        lambda data: data + b"0" * 64 + b"  signature\n",
        lambda data: data + b"0" * 64 + b"  Manifest.json\n",
        lambda data: data + b"0" * 64 + b"  tokenizer.json/a\n",
        lambda data: data + b"0" * 64 + b"  caf\xc3\xa9\n",
        lambda data: data + b"0" * 63 + b"g  name\n",
        lambda _: b"",
        lambda _: b"\n",
        lambda _: b"\xff" * 10,
        lambda _: bytes(5_000_000),
    ],
)
def test_the_sums_have_one_spelling(change: Callable[[bytes], bytes], root: Path) -> None:
    (root / "SHA256SUMS").write_bytes(change((root / "SHA256SUMS").read_bytes()))
    with pytest.raises(BundleTampered):
        load_bundle(root)


@pytest.fixture
def as_somebody_else() -> Iterator[Path]:
    """A folder whose files the test cannot read when they say so: root would read them all the same."""
    with tempfile.TemporaryDirectory() as name:
        root = small_bundle(Path(name) / "bundle")
        if os.geteuid() != 0:
            yield root
            return
        for path in (Path(name), root, *root.rglob("*")):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("name", [".", "graphs", "SHA256SUMS", "manifest.json", "tokenizer.json"])
def test_what_cannot_be_read_is_a_bundle_error(name: str, as_somebody_else: Path) -> None:
    path = as_somebody_else / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(BundleError, match="Permission denied") as caught:
            load_bundle(as_somebody_else)
    finally:
        path.chmod(mode)
    assert type(caught.value) is BundleError
    load_bundle(as_somebody_else)


def test_a_read_error_is_a_bundle_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(BundleError, match="Input/output error"):
        load_bundle(root)


def test_a_manifest_that_changes_after_it_was_hashed_is_not_parsed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundles.verified_sums

    def then_change(folder: Path, **options: Any) -> object:
        result = real(folder, **options)
        (folder / "manifest.json").write_text("{}")
        return result

    monkeypatch.setattr(bundles, "verified_sums", then_change)
    with pytest.raises(BundleTampered, match=r"manifest\.json"):
        load_bundle(root)


def test_a_bundle_of_the_first_schema_still_loads(root: Path) -> None:
    manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
    del manifest["release"]
    (root / "manifest.json").write_bytes(msgspec.json.encode({**manifest, "schema_version": 1}))
    _seal(root)
    assert load_bundle(root).manifest.release == 0


@pytest.mark.parametrize(
    "data",
    [b'{"x":' + b"[" * 100_000, b'{"schema_version":2,"name":"\xff"}', b"", b"null", b'{"schema_version":1e999}'],
    ids=["deep", "not UTF-8", "empty", "null", "infinite"],
)
def test_a_manifest_of_nonsense_is_a_schema_error(data: bytes, root: Path) -> None:
    (root / "manifest.json").write_bytes(data)
    _seal(root)
    with pytest.raises(BundleSchemaError):
        load_bundle(root)


def test_a_graph_outside_the_bundle_is_missing(root: Path) -> None:
    (root.parent / "outside.onnx").write_bytes(b"graph")
    manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
    for path in ("../outside.onnx", str(root.parent / "outside.onnx"), "graphs/../../outside.onnx", ""):
        manifest["graphs"][0]["path"] = path
        (root / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        _seal(root)
        with pytest.raises(BundleMissing):
            load_bundle(root)


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="other files"):
        small_bundle(tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


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
        ({"schema_version": 3}, "schema_version up to 2"),
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
    staged = stage(tmp_path / "again")
    manifest = msgspec.structs.replace(small_manifest(staged), model_version="test-2")
    assert write_bundle(root, manifest, staged).manifest.model_version == "test-2"
    assert load_bundle(root).manifest.model_version == "test-2"
    assert not staged.exists()


def test_a_full_disk_leaves_the_old_bundle(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = stage(tmp_path / "again")
    manifest = msgspec.structs.replace(small_manifest(staged), model_version="test-2")

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
