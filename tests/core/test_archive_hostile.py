"""Hostile archives write nothing anywhere, over nothing and over an old bundle."""

import shutil
from pathlib import Path

import pytest

from pocketlens.core.archive import install_archive
from pocketlens.core.errors import BundleError, BundleMissing, BundleSchemaError, BundleTampered
from tests.core.hostile_archives import HOSTILE, Files, build, resealed
from tests.core.small_bundle import tree, written


def _files(root: Path) -> Files:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return [(name, (root / name).read_bytes()) for name in names]


def test_there_are_enough_hostile_archives() -> None:
    assert len(HOSTILE) >= 60


def test_the_builder_of_hostile_archives_builds_good_ones_too(sealed: Path, packed: bytes) -> None:
    assert build(_files(sealed)) == packed
    good = build(resealed(_files(sealed), [("golden/fine.txt", b"escaped")]))
    assert good != packed


def test_a_resealed_bundle_with_a_plain_name_is_accepted(sealed: Path, world: Path) -> None:
    data = build(resealed(_files(sealed), [("golden/fine.txt", b"escaped")]))
    assert (install_archive(written(world, data), world / "bundle").root / "golden" / "fine.txt").is_file()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing_anywhere(name: str, sealed: Path, world: Path) -> None:
    path = written(world, HOSTILE[name](_files(sealed)))
    before = tree(world.parent)
    with pytest.raises((BundleTampered, BundleMissing, BundleSchemaError)):
        install_archive(path, world / "inner" / "bundle")
    assert tree(world.parent) == before
    shutil.copytree(sealed, world / "old")
    with pytest.raises(BundleError):
        install_archive(path, world / "old")
    assert tree(world / "old") == tree(sealed)
    shutil.rmtree(world / "old")
    assert tree(world.parent) == before
    assert not Path("/tmp/escaped.txt").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("name: parent", "the part .."),
        ("name: absolute", "an absolute path"),
        ("name: drive", "the letter :"),
        ("name: composed", "printable ASCII"),
        ("names: duplicate", "twice"),
        ("names: case", "differ in case only"),
        ("names: file and folder", "as a file and as a folder"),
        ("mode: link", "which is a link"),
        ("mode: character device", "which is a character device"),
        ("encrypted", "which is encrypted"),
        ("compressed", "which is compressed"),
        ("bomb by ratio", "which is compressed"),
        ("bomb by count", "10001 files"),
        ("ZIP64 sizes", "ZIP64"),
        ("ZIP64 end", "ZIP64"),
        ("half", "truncated"),
        ("unlisted file", "golden/unlisted"),
        ("wrong CRC", "CRC-32"),
    ],
)
def test_the_message_says_what_is_wrong(name: str, said: str, sealed: Path, world: Path) -> None:
    with pytest.raises(BundleError) as caught:
        install_archive(written(world, HOSTILE[name](_files(sealed))), world / "bundle")
    assert said in str(caught.value).replace(",", "")
