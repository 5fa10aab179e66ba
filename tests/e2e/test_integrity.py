"""The way of a bundle from the one who signs it to the one who installs it, by commands alone."""

import shutil
from pathlib import Path

import pytest

from pocketlens.core.bundle import load_bundle
from tests.e2e.conftest import Run

pytest.importorskip("cryptography", reason="the extra `sign` is not installed")


@pytest.fixture
def key(tmp_path: Path, run: Run) -> Path:
    """A private key; its public key lies beside it."""
    made = run("keygen", tmp_path / "key", "--json")
    assert made.code == 0
    assert made.records[0]["public_key"] == str(tmp_path / "key.pub")
    return tmp_path / "key"


def test_sign_pack_install(bundle: Path, key: Path, tmp_path: Path, run: Run) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    public = f"{key}.pub"
    assert run("sign", root, "--key", key).lines[0].startswith(f"{root}\t")
    packed = run("pack", root, "-o", tmp_path / "b.zip", "--key", public, "--json").records[0]
    assert packed["bytes"] == (tmp_path / "b.zip").stat().st_size
    installed = run("install", tmp_path / "b.zip", tmp_path / "there", "--key", public, "--json")
    assert installed.code == 0, installed.err
    signer = load_bundle(root).signer
    assert installed.records == [
        {
            "bundle": str(tmp_path / "there"),
            "name": "tiny",
            "model_version": "tiny-3",
            "release": 0,
            "key": str(signer),
        }
    ]
    assert run("inspect", tmp_path / "there").code == 0


def test_what_is_not_signed_by_the_key_is_refused(bundle: Path, key: Path, tmp_path: Path, run: Run) -> None:
    assert run("pack", bundle, "-o", tmp_path / "b.zip").code == 0
    ended = run("install", tmp_path / "b.zip", tmp_path / "there", "--key", f"{key}.pub")
    assert "no signature" in ended.refuses("BundleTampered", 4)
    assert not (tmp_path / "there").exists()
    assert run("install", tmp_path / "b.zip", tmp_path / "there", "--no-probe").lines[0].endswith("\tunsigned")


def test_a_key_is_never_overwritten(key: Path, run: Run) -> None:
    assert "never overwritten" in run("keygen", key).refuses("BundleError", 4)


def test_a_private_key_in_the_place_of_a_public_one_is_refused(
    bundle: Path, key: Path, tmp_path: Path, run: Run
) -> None:
    assert "public key" in run("pack", bundle, "-o", tmp_path / "b.zip", "--key", key).refuses("BundleError", 4)
