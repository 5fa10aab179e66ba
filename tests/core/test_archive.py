"""An archive is installed whole or not at all, and a hostile one writes nothing anywhere."""

import errno
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from pocketlens.core import archive as archives
from pocketlens.core.archive import install_archive, pack_bundle
from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.errors import BundleError, BundleMissing, BundleTampered, StorageFull
from pocketlens.core.seal import verify_files
from tests.core.small_bundle import small_bundle, tree, written

ROOT = Path(__file__).parents[2]

# Good archives


def test_what_was_packed_is_what_is_installed(sealed: Path, packed: bytes, world: Path) -> None:
    bundle = install_archive(written(world, packed), world / "inner" / "bundle")
    assert tree(bundle.root) == tree(sealed)
    assert bundle == load_bundle(world / "inner" / "bundle")
    assert {path.name for path in (world / "inner").iterdir()} == {"bundle", ".bundle.installed"}
    assert stat.S_IMODE(bundle.root.stat().st_mode) == 0o755


def test_the_same_bundle_gives_the_same_bytes(sealed: Path, packed: bytes, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sealed, tmp_path / "another name"))
    os.utime(copy / "manifest.json", (0, 0))
    assert pack_bundle(copy, tmp_path / "again.zip").read_bytes() == packed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_any_zip_program_can_read_it(sealed: Path, packed: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed)) as reader:
        assert reader.testzip() is None
        reader.extractall(tmp_path / "unzipped")
    assert load_bundle(tmp_path / "unzipped").manifest == load_bundle(sealed).manifest


def test_an_empty_file_and_a_deep_folder_survive(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "bundle", extra={"golden/empty.bin": b"", "a/b/c/d/e/f.bin": b"x"})
    pack_bundle(root, tmp_path / "a.zip")
    assert tree(install_archive(tmp_path / "a.zip", tmp_path / "out").root) == tree(root)


def test_an_archive_inside_its_bundle_is_refused(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="outside the bundle"):
        pack_bundle(root, root / "bundle.zip")
    load_bundle(root)


def test_a_damaged_bundle_is_not_packed(tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "bundle")
    (root / "tokenizer.json").write_text("[]")
    with pytest.raises(BundleTampered, match=r"tokenizer\.json"):
        pack_bundle(root, tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


# Where it goes


def test_a_folder_that_is_no_bundle_is_never_replaced(packed: bytes, world: Path) -> None:
    path, before = written(world, packed), tree(world)
    for target in (world, world / "precious.txt"):
        with pytest.raises(BundleError, match="an empty folder"):
            install_archive(path, target)
    assert tree(world) == before
    assert install_archive(path, world / "inner").root == (world / "inner").resolve()


def test_through_a_link_the_folder_behind_it_is_replaced(packed: bytes, world: Path) -> None:
    (world / "link").symlink_to("inner")
    install_archive(written(world, packed), world / "link")
    assert (world / "link").is_symlink()
    verify_files(world / "inner")


def test_a_check_that_fails_leaves_the_old_bundle_and_nothing_else(packed: bytes, world: Path) -> None:
    path = written(world, packed)
    install_archive(path, world / "bundle")
    before, seen = tree(world), []

    def check(bundle: Bundle) -> None:
        seen.append(bundle.manifest.release)
        verify_files(bundle.root)
        raise BundleTampered("graph", expected="a", found="b", remedy="c.")

    with pytest.raises(BundleTampered, match="graph"):
        install_archive(path, world / "bundle", check=check)
    assert seen == [3]
    assert tree(world) == before


def test_a_check_that_fails_leaves_no_folder_that_was_made_for_it(packed: bytes, world: Path) -> None:
    path, before = written(world, packed), tree(world)

    def check(_: Bundle) -> None:
        raise BundleTampered("graph", expected="a", found="b", remedy="c.")

    with pytest.raises(BundleTampered, match="graph"):
        install_archive(path, world / "a" / "b" / "bundle", check=check)
    assert tree(world) == before
    assert install_archive(path, world / "a" / "b" / "bundle").manifest.release == 3


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EIO, BundleError)])
def test_a_disk_that_fails_leaves_the_old_bundle_and_nothing_else(
    number: int, error: type[BundleError], packed: bytes, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(world, packed)
    install_archive(path, world / "bundle")
    before = tree(world)
    for step in ("sync_tree", "remember", "replace_folder"):

        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(archives, step, fail)
            with pytest.raises(error, match="bundle"):
                install_archive(path, world / "bundle")
        assert tree(world) == before, step


def test_an_archive_that_changes_while_it_is_unpacked_is_refused(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Larger than what a buffer holds of it, with the change at its end.
    root = small_bundle(tmp_path / "bundle", extra={"golden/large.bin": bytes(100_000) + b"the end"})
    path, before = pack_bundle(root, tmp_path / "large.zip"), tree(world)
    at, real = path.read_bytes().index(b"the end"), archives.check_release

    def swap(*arguments: object, **options: object) -> None:  # the last step before writing
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"THE")
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "check_release", swap)
    with pytest.raises(BundleTampered, match="SHA-256"):
        install_archive(path, world / "bundle")
    assert tree(world) == before


@pytest.mark.parametrize("what", ["nothing", "a folder", "a pipe"])
def test_what_is_no_file_is_missing(what: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    with pytest.raises(BundleMissing):
        install_archive(path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


# Damage


def _flips(data: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    numbers = random.Random(len(data))
    for position in sorted(numbers.sample(range(8 * len(data)), min(count, 8 * len(data)))):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        yield position, bytes(broken)


def test_flipped_bits_of_an_archive_are_refused(packed: bytes, tmp_path: Path) -> None:
    """A sample; `test_every_single_bit_of_an_archive_is_refused` tries all of them."""
    path = tmp_path / "broken.zip"
    for position, broken in _flips(packed, 1200):
        path.write_bytes(broken)
        with pytest.raises(BundleError):
            install_archive(path, tmp_path / "target")
        assert [entry.name for entry in tmp_path.iterdir()] == ["broken.zip"], position


@pytest.mark.slow
def test_every_single_bit_of_an_archive_is_refused(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.zip"
    for position, broken in _flips(packed, 8 * len(packed)):
        path.write_bytes(broken)
        with pytest.raises(BundleError):
            install_archive(path, tmp_path / "target")
        assert [entry.name for entry in tmp_path.iterdir()] == ["broken.zip"], position


def test_every_truncation_is_refused(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "short.zip"
    for length in random.Random(1).sample(range(len(packed)), 150):
        path.write_bytes(packed[:length])
        with pytest.raises(BundleError):
            install_archive(path, tmp_path / "target")
    assert [entry.name for entry in tmp_path.iterdir()] == ["short.zip"]


def test_nothing_is_parsed_before_it_is_verified(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    real = msgspec.json.decode

    def decode(data: bytes, **options: object) -> object:
        parsed.append(data)
        return real(data, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(msgspec.json, "decode", decode)
    path = tmp_path / "broken.zip"
    for _, broken in _flips(packed, 200):
        path.write_bytes(broken)
        with pytest.raises(BundleError):
            install_archive(path, tmp_path / "target")
    assert parsed == []
    path.write_bytes(packed)
    install_archive(path, tmp_path / "target")
    sums = (tmp_path / "target" / "SHA256SUMS").read_text()
    assert parsed
    assert all(f"{sha256(data).hexdigest()}  manifest.json\n" in sums for data in parsed)


# Kills


def _kills(count: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.archive_kills", "--kills", str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _check_kills(found: dict[str, object], count: int) -> None:
    assert found["kills"] == count
    assert int(str(found.get("old", 0))) + int(str(found.get("new", 0))) == count
    assert found["left behind at the end"] == []


def test_a_kill_leaves_the_old_bundle_or_the_new_one() -> None:
    _check_kills(_kills(20), 20)


@pytest.mark.slow
def test_hundreds_of_kills_leave_the_old_bundle_or_the_new_one() -> None:
    found = _kills(500)
    _check_kills(found, 500)
    assert int(str(found["new"])) > 0
