"""A signature is checked before a line is read, and what carries one is never used without checking it."""

import random
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pocketlens.core import seal
from pocketlens.core.archive import install_archive, pack_bundle
from pocketlens.core.bundle import load_bundle, write_bundle
from pocketlens.core.errors import BundleError, BundleTampered
from pocketlens.core.signature import DOMAIN, PublicKey, check_signature, read_public_key
from tests.core.small_bundle import small_bundle, small_manifest

pytest.importorskip("cryptography", reason="the extra `sign` is not installed")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pocketlens.core.signing import generate_key, sign_bundle


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys `ours` and `theirs`."""
    folder = tmp_path_factory.mktemp("keys")
    generate_key(folder / "ours")
    generate_key(folder / "theirs")
    return folder


@pytest.fixture
def ours(keys: Path) -> PublicKey:
    return read_public_key(keys / "ours.pub")


@pytest.fixture
def theirs(keys: Path) -> PublicKey:
    return read_public_key(keys / "theirs.pub")


@pytest.fixture
def signed(keys: Path, tmp_path: Path) -> Path:
    return sign_bundle(small_bundle(tmp_path / "bundle", release=2), keys / "ours").root


def test_a_signed_bundle_loads_and_says_who_signed_it(signed: Path, ours: PublicKey, theirs: PublicKey) -> None:
    assert load_bundle(signed).signer == ours
    assert load_bundle(signed, trusted_keys=[theirs, ours]).signer == ours


def test_the_signature_is_rfc_8032_over_the_domain_and_the_sums(signed: Path, ours: PublicKey) -> None:
    first, key, signature = (signed / "signature").read_text().splitlines()
    assert (first, key) == ("pocketlens-signature 1", f"key {ours}")
    library = ed25519.Ed25519PublicKey.from_public_bytes(ours.raw)
    library.verify(bytes.fromhex(signature.removeprefix("ed25519 ")), DOMAIN + (signed / "SHA256SUMS").read_bytes())


def test_rfc_8032_section_7_1_test_1() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    public = PublicKey(key.public_key().public_bytes_raw())
    assert str(public) == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_an_unsigned_bundle_loads_only_where_no_key_is_demanded(tmp_path: Path, ours: PublicKey) -> None:
    root = small_bundle(tmp_path / "bundle")
    assert load_bundle(root).signer is None
    with pytest.raises(BundleTampered, match="no signature"):
        load_bundle(root, trusted_keys=[ours])


def test_a_signature_by_somebody_else_is_refused(signed: Path, theirs: PublicKey) -> None:
    with pytest.raises(BundleTampered, match=f"trusted key {theirs}"):
        load_bundle(signed, trusted_keys=[theirs])


def test_another_ones_key_written_into_the_signature_does_not_help(
    signed: Path, ours: PublicKey, theirs: PublicKey
) -> None:
    text = (signed / "signature").read_text()
    (signed / "signature").write_text(text.replace(str(ours), str(theirs)))
    for trusted in ([], [theirs], [ours]):
        with pytest.raises(BundleTampered):
            load_bundle(signed, trusted_keys=trusted)


def test_a_signature_of_other_sums_is_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    other = sign_bundle(small_bundle(tmp_path / "other", extra={"golden/a": b"1"}), keys / "ours").root
    (signed / "signature").write_bytes((other / "signature").read_bytes())
    with pytest.raises(BundleTampered, match="does not fit"):
        load_bundle(signed)


def test_a_signature_without_its_domain_is_refused(signed: Path, keys: Path, ours: PublicKey) -> None:
    secret = serialization.load_pem_private_key((keys / "ours").read_bytes(), password=None)
    assert isinstance(secret, ed25519.Ed25519PrivateKey)
    bare = secret.sign((signed / "SHA256SUMS").read_bytes()).hex()
    (signed / "signature").write_text(f"pocketlens-signature 1\nkey {ours}\ned25519 {bare}\n")
    with pytest.raises(BundleTampered, match="does not fit"):
        load_bundle(signed)


def test_every_bit_of_a_signature_counts(signed: Path) -> None:
    sums, content = (signed / "SHA256SUMS").read_bytes(), (signed / "signature").read_bytes()
    assert check_signature(sums, content, what="bundle") is not None
    for position in range(8 * len(content)):
        broken = bytearray(content)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(BundleTampered):
            check_signature(sums, bytes(broken), what="bundle")


@pytest.mark.parametrize("change", [b"", b"\n", b" ", b"# signed\n", b"\0"])
def test_a_signature_has_one_spelling(signed: Path, change: bytes) -> None:
    content = (signed / "signature").read_bytes()
    (signed / "signature").write_bytes(content + change if change else content.upper())
    with pytest.raises(BundleTampered, match="in the form"):
        load_bundle(signed)


def test_the_signature_is_checked_before_a_line_of_the_sums_is_read(
    signed: Path, ours: PublicKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    real = seal.parse_sums

    def parse_sums(data: bytes, what: str) -> dict[str, str]:
        read.append(data)
        return real(data, what)

    monkeypatch.setattr(seal, "parse_sums", parse_sums)
    sums = (signed / "SHA256SUMS").read_bytes()
    (signed / "SHA256SUMS").write_bytes(b"\xff not even a line " + sums)
    with pytest.raises(BundleTampered, match="does not fit"):
        load_bundle(signed)
    assert read == []
    (signed / "SHA256SUMS").write_bytes(sums)
    load_bundle(signed, trusted_keys=[ours])
    assert read == [sums]


def test_no_parser_sees_a_byte_that_is_not_verified(
    signed: Path, ours: PublicKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    real = msgspec.json.decode

    def decode(data: bytes, **options: object) -> object:
        parsed.append(data)
        return real(data, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(msgspec.json, "decode", decode)
    numbers = random.Random(4)
    for path in sorted(path for path in signed.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for _ in range(20):
            broken = bytearray(original)
            broken[numbers.randrange(len(broken))] ^= 1 << numbers.randrange(8)
            path.write_bytes(broken)
            with pytest.raises(BundleError):
                load_bundle(signed, trusted_keys=[ours])
        path.write_bytes(original)
    assert parsed == []
    load_bundle(signed, trusted_keys=[ours])
    assert set(parsed) == {(signed / "manifest.json").read_bytes()}


def test_a_signed_bundle_is_refused_where_cryptography_is_missing(signed: Path, tmp_path: Path) -> None:
    small_bundle(tmp_path / "unsigned")
    code = f"""
import sys
sys.modules["cryptography"] = None
from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import BundleError
from pocketlens.core.signature import read_public_key
load_bundle({str(tmp_path / "unsigned")!r})
try:
    load_bundle({str(signed)!r})
except BundleError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BundleError ")
    assert "pip install 'pocketlens[sign]'" in done.stdout


def test_verifying_a_signature_needs_no_torch(signed: Path, keys: Path) -> None:
    code = f"""
import sys
for name in ("torch", "torchvision", "transformers"):
    sys.modules[name] = None
from pocketlens.core.bundle import load_bundle
from pocketlens.core.signature import read_public_key
print(load_bundle({str(signed)!r}, trusted_keys=[read_public_key({str(keys / "ours.pub")!r})]).signer)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(read_public_key(keys / "ours.pub"))


def test_a_changed_bundle_loses_its_signature(signed: Path, ours: PublicKey, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    signed.rename(staged)
    write_bundle(signed, small_manifest(staged, release=3), staged)
    assert load_bundle(signed).signer is None
    assert not (signed / "signature").exists()


def test_a_link_for_a_signature_is_refused(signed: Path, tmp_path: Path) -> None:
    (signed / "signature").rename(tmp_path / "outside")
    (signed / "signature").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleTampered, match="link"):
        load_bundle(signed)


def test_a_signature_travels_in_the_archive_and_its_key_is_demanded_again(
    signed: Path, keys: Path, ours: PublicKey, theirs: PublicKey, tmp_path: Path
) -> None:
    good = pack_bundle(signed, tmp_path / "signed.zip")
    unsigned = pack_bundle(small_bundle(tmp_path / "plain", release=9), tmp_path / "unsigned.zip")
    forged = sign_bundle(small_bundle(tmp_path / "forged", release=9), keys / "theirs").root
    forged_zip = pack_bundle(forged, tmp_path / "forged.zip")
    target = tmp_path / "installed"
    with pytest.raises(BundleTampered, match="trusted key"):
        install_archive(forged_zip, target, trusted_keys=[ours])
    assert install_archive(good, target, trusted_keys=[ours]).signer == ours
    for archive in (unsigned, forged_zip):  # no key named: that of the first installation counts
        with pytest.raises(BundleTampered, match=f"trusted key {ours}"):
            install_archive(archive, target)
    assert load_bundle(target).signer == ours
    install_archive(good, target)
    assert install_archive(forged_zip, target, trusted_keys=[theirs]).signer == theirs


# Keys


def test_a_new_key_is_private_and_never_overwrites(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read_public_key(tmp_path / "key.pub") == public
    loaded = serialization.load_pem_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(loaded, ed25519.Ed25519PublicKey)
    assert loaded.public_bytes_raw() == public.raw
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(BundleError, match="never overwritten"):
        generate_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_what_is_no_public_key_is_refused(keys: Path, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data in (b"", b"\xff", pem, (keys / "ours").read_bytes(), (keys / "ours.pub").read_bytes()[:-30]):
        (tmp_path / "key.pub").write_bytes(data)
        with pytest.raises(BundleError, match="public key"):
            read_public_key(tmp_path / "key.pub")
    with pytest.raises(BundleError, match="No such file"):
        read_public_key(tmp_path / "none.pub")


def test_what_is_no_private_key_is_refused_and_the_bundle_stays(keys: Path, signed: Path, tmp_path: Path) -> None:
    secret = ed25519.Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    other = ec.generate_private_key(ec.SECP256R1())
    before = (signed / "signature").read_bytes()
    for data in (
        b"",
        (keys / "ours.pub").read_bytes(),
        secret.private_bytes(*form, serialization.BestAvailableEncryption(b"password")),
        other.private_bytes(*form, serialization.NoEncryption()),
    ):
        (tmp_path / "key").write_bytes(data)
        with pytest.raises(BundleError, match="private key"):
            sign_bundle(signed, tmp_path / "key")
    assert (signed / "signature").read_bytes() == before


def test_a_damaged_bundle_is_not_signed(keys: Path, tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "bundle")
    (root / "tokenizer.json").write_text("[]")
    with pytest.raises(BundleTampered):
        sign_bundle(root, keys / "ours")
    assert not (root / "signature").exists()
