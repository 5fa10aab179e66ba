"""Bundles are signed for publishing offline, with a key of one's own, and every changed bit is found."""

import random
import socket
from pathlib import Path

import pytest

from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import BundleError, BundleTampered
from pocketlens.export.publishing import sign_for_publishing, signature_path, verify_published
from tests.core.small_bundle import small_bundle


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "model_signing", None)
    with pytest.raises(BundleError, match=r"pocketlens\[publish\]"):
        sign_for_publishing(small_bundle(tmp_path / "bundle"), tmp_path / "key")


class TestWithTheExtra:
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("model_signing", reason="the extra `publish` is not installed")

        def refuse(*_: object) -> None:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr(socket.socket, "connect", refuse)

    @pytest.fixture
    def keys(self, tmp_path: Path) -> tuple[Path, Path]:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "key").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pub").write_bytes(public)
        return tmp_path / "key", tmp_path / "key.pub"

    def test_a_published_bundle_verifies_and_stays_a_bundle(self, keys: tuple[Path, Path], tmp_path: Path) -> None:
        root = small_bundle(tmp_path / "bundle")
        path = sign_for_publishing(root, keys[0])
        assert path == signature_path(root) == tmp_path / "bundle.model.sig"
        verify_published(root, keys[1])
        load_bundle(root)
        assert [file.name for file in tmp_path.glob(".*")] == []

    def test_a_changed_extra_or_missing_file_is_found(self, keys: tuple[Path, Path], tmp_path: Path) -> None:
        root = small_bundle(tmp_path / "bundle")
        sign_for_publishing(root, keys[0])
        numbers = random.Random(1)
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            original = file.read_bytes()
            broken = bytearray(original)
            broken[numbers.randrange(len(broken))] ^= 1 << numbers.randrange(8)
            file.write_bytes(broken)
            with pytest.raises(BundleTampered):
                verify_published(root, keys[1])
            file.unlink()
            with pytest.raises(BundleTampered):
                verify_published(root, keys[1])
            file.write_bytes(original)
        (root / "extra").write_bytes(b"x")
        with pytest.raises(BundleTampered):
            verify_published(root, keys[1])

    def test_a_broken_or_absent_signature_is_refused(self, keys: tuple[Path, Path], tmp_path: Path) -> None:
        root = small_bundle(tmp_path / "bundle")
        path = sign_for_publishing(root, keys[0])
        good = path.read_bytes()
        for data in (b"", b"{}", b"[]", b"\xff", good[: len(good) // 2], good.replace(b"payload", b"pAyload")):
            path.write_bytes(data)
            with pytest.raises(BundleTampered):
                verify_published(root, keys[1])
        path.unlink()
        with pytest.raises(BundleTampered):
            verify_published(root, keys[1])

    def test_what_is_no_curve_key_is_refused(self, tmp_path: Path) -> None:
        from pocketlens.core.signing import generate_key

        root = small_bundle(tmp_path / "bundle")
        generate_key(tmp_path / "ed25519")
        (tmp_path / "nonsense").write_bytes(b"no key")
        for name in ("ed25519", "nonsense", "absent"):
            with pytest.raises(BundleError, match="elliptic-curve"):
                sign_for_publishing(root, tmp_path / name)
        assert not signature_path(root).exists()
