"""Making Ed25519 keys and signing bundles. Needs `cryptography`, the extra `sign`."""

import os
from pathlib import Path
from typing import Any, Final

from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.errors import BundleError, storage_errors
from pocketlens.core.replace import sync_folder
from pocketlens.core.seal import SUMS_FILE
from pocketlens.core.signature import DOMAIN, SIGNATURE_FILE, PublicKey, ed25519, encode_signature

__all__ = ["generate_key", "sign_bundle"]

_MAX_KEY_FILE_BYTES: Final = 4096


def generate_key(path: str | os.PathLike[str]) -> PublicKey:
    """Write a new private key to `path` (PKCS #8, PEM, mode 0600) and its public key to `path`.pub.

    The private key is not encrypted: keep it where only the one who releases can read it.

    Raises:
        BundleError: one of the files exists already or cannot be written, or `cryptography` is not installed.
        StorageFull: no space.
    """
    private_path = Path(path)
    public_path = private_path.with_name(f"{private_path.name}.pub")
    key = ed25519(f"key {private_path}").Ed25519PrivateKey.generate()
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = PublicKey(key.public_key().public_bytes_raw())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, data, mode in ((private_path, secret, 0o600), (public_path, public.pem().encode(), 0o644)):
        try:
            with (
                storage_errors(file),
                os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out,
            ):
                out.write(data)
        except OSError as error:
            raise BundleError(
                f"key {file}",
                expected="a new file",
                found=error.strerror or type(error).__name__,
                remedy="Name another file: a key is never overwritten.",
            ) from error
    return public


def sign_bundle(root: str | os.PathLike[str], private_key: str | os.PathLike[str]) -> Bundle:
    """Write the signature of the bundle at `root` and return the bundle.

    Every byte is verified before. An older signature is replaced. Whatever changes the bundle afterwards,
    such as a new export, removes or breaks it.

    Raises:
        BundleError: there is no valid bundle, the key cannot be read or is of another kind, or
            `cryptography` is not installed.
        StorageFull: no space.
    """
    key = _read_private_key(Path(private_key))
    public = PublicKey(key.public_key().public_bytes_raw())
    folder = load_bundle(root).root
    sums = (folder / SUMS_FILE).read_bytes()
    content = encode_signature(public, key.sign(DOMAIN + sums))
    # Beside the bundle, not in it: a kill must not leave a file that nothing lists.
    part = folder.with_name(f".{folder.name}.{SIGNATURE_FILE}.part")
    try:
        with storage_errors(folder):
            part.write_bytes(content)
            part.replace(folder / SIGNATURE_FILE)
            sync_folder(folder)
    except OSError as error:
        raise BundleError(
            f"bundle {root}",
            expected="a folder that can be written to",
            found=error.strerror or type(error).__name__,
            remedy="Check its permissions and the disk.",
        ) from error
    return load_bundle(folder, trusted_keys=(public,))


def _read_private_key(path: Path) -> Any:
    library = ed25519(f"key {path}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as stream:
            key = load_pem_private_key(stream.read(_MAX_KEY_FILE_BYTES), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError is what `cryptography` raises for an encrypted key without its password.
        found = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise _no_key(path, found or type(error).__name__) from error
    if not isinstance(key, library.Ed25519PrivateKey):
        raise _no_key(path, f"a key of type {type(key).__name__}")
    return key


def _no_key(path: Path, found: str) -> BundleError:
    return BundleError(
        f"private key {path}",
        expected="an Ed25519 private key in PEM form, not encrypted",
        found=found[:200],
        remedy="Make one with `pocketlens keygen`.",
    )
