"""Who made a bundle: an Ed25519 signature (RFC 8032) over the bytes of `SHA256SUMS`.

The file `signature` beside `SHA256SUMS` is three lines of ASCII, in exactly this form::

    pocketlens-signature 1
    key <64 hexadecimal digits: the public key>
    ed25519 <128 hexadecimal digits: the signature>

What is signed is `DOMAIN` followed by the bytes of `SHA256SUMS`, so that a signature made for
something else can never stand here. It is checked before a single line of `SHA256SUMS` is read.

The key in the file only tells damage: whoever can replace the bundle can sign it with a key of his
own. Who made it is known only to a caller who brings a trusted key.

`cryptography` is imported when there is a signature to check; reading a public key needs no library.
"""

import base64
import binascii
import os
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Final

import msgspec

from pocketlens.core.errors import BundleError, BundleTampered

__all__ = [
    "DOMAIN",
    "SIGNATURE_FILE",
    "PublicKey",
    "check_signature",
    "ed25519",
    "encode_signature",
    "read_public_key",
]

SIGNATURE_FILE: Final = "signature"
DOMAIN: Final = b"pocketlens bundle signature 1\n"

_TEXT: Final = "pocketlens-signature 1\nkey {key}\ned25519 {signature}\n"
SIGNATURE_BYTES: Final = len(_TEXT.format(key="0" * 64, signature="0" * 128))
# RFC 8410, section 4: every Ed25519 SubjectPublicKeyInfo is these twelve bytes and the key.
_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
_PEM: Final = ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----")
_MAX_KEY_FILE_BYTES: Final = 4096


class PublicKey(msgspec.Struct, frozen=True):
    """An Ed25519 public key; `raw` is its 32 bytes."""

    raw: bytes

    def __str__(self) -> str:
        return self.raw.hex()

    def pem(self) -> str:
        """Return it as PEM (SubjectPublicKeyInfo), as OpenSSL reads it."""
        body = base64.b64encode(_SPKI_PREFIX + self.raw).decode()
        return f"{_PEM[0]}\n{body}\n{_PEM[1]}\n"


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """Return the Ed25519 public key in the PEM file at `path`.

    Raises:
        BundleError: there is no such file, or it holds something else.
    """
    try:
        with Path(path).open("rb") as stream:
            lines = stream.read(_MAX_KEY_FILE_BYTES).decode("ascii").split()
        # The two marker lines hold blanks: they are three words each.
        words = [*_PEM[0].split(), *_PEM[1].split()]
        if lines[:3] + lines[-3:] != words:
            raise ValueError("no PEM public key")
        der = base64.b64decode("".join(lines[3:-3]), validate=True)
        if len(der) != len(_SPKI_PREFIX) + 32 or not der.startswith(_SPKI_PREFIX):
            raise ValueError("a public key of another kind than Ed25519")
    except (OSError, ValueError, binascii.Error) as error:
        found = error.strerror if isinstance(error, OSError) else str(error)
        raise BundleError(
            f"public key {path}",
            expected="an Ed25519 public key in PEM form",
            found=found or type(error).__name__,
            remedy="Give the .pub file that `pocketlens keygen` wrote, not the private key.",
        ) from error
    return PublicKey(der[len(_SPKI_PREFIX) :])


def encode_signature(key: PublicKey, signature: bytes) -> bytes:
    """Return the content of the file `signature`."""
    return _TEXT.format(key=key, signature=signature.hex()).encode("ascii")


def check_signature(
    sums: bytes, signature: bytes | None, *, trusted_keys: Collection[PublicKey] = (), what: str
) -> PublicKey | None:
    """Return the key that signed the bytes `sums` of `SHA256SUMS`, or `None` where nothing is signed.

    Args:
        sums: the file's bytes, unparsed.
        signature: bytes of the file `signature`; `None` if there is none.
        trusted_keys: with any of them, a valid signature by one of them is required.
        what: names the bundle in messages.

    Raises:
        BundleTampered: the signature is malformed or wrong; or, with `trusted_keys`, absent or by another key.
        BundleError: there is a signature and `cryptography` is not installed.
    """
    wanted = " or ".join(sorted(map(str, trusted_keys)))
    if signature is None:
        if not trusted_keys:
            return None
        raise BundleTampered(
            what,
            expected=f"a signature by the trusted key {wanted}",
            found="no signature",
            remedy="Fetch the bundle again from the one who signed it; do not use this one.",
        )
    key, value = _decode(signature, what)
    if trusted_keys and key not in trusted_keys:
        raise BundleTampered(
            what,
            expected=f"a signature by the trusted key {wanted}",
            found=f"one by {key}",
            remedy="Fetch the bundle from the one whom you trust, or trust this key if you know whose it is.",
        )
    library = ed25519(what)
    from cryptography.exceptions import InvalidSignature

    try:
        library.Ed25519PublicKey.from_public_bytes(key.raw).verify(value, DOMAIN + sums)
    except (InvalidSignature, ValueError) as error:
        raise BundleTampered(
            what,
            expected=f"a valid signature of SHA256SUMS by {key}",
            found="a signature that does not fit",
            remedy="SHA256SUMS or the signature was changed: fetch the bundle again.",
        ) from error
    return key


def ed25519(what: str) -> ModuleType:
    """Return the Ed25519 module of `cryptography`.

    Raises:
        BundleError: it is not installed; `what` names what needed it.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519 as library
    except ImportError as error:
        raise BundleError(
            what,
            expected="the package cryptography, to check or make a signature",
            found=str(error),
            remedy="pip install 'pocketlens[sign]'",
        ) from error
    return library


def _decode(data: bytes, what: str) -> tuple[PublicKey, bytes]:
    try:
        words = data.decode("ascii").split()
        key, value = PublicKey(bytes.fromhex(words[3])), bytes.fromhex(words[5])
    except (UnicodeDecodeError, ValueError, IndexError):
        key, value = PublicKey(b""), b""
    # Written again it must be the same bytes: there is one way to write a signature, so that no bit of it is free.
    if len(key.raw) != 32 or len(value) != 64 or encode_signature(key, value) != data:
        raise BundleTampered(
            what,
            expected="a signature in the form that `pocketlens sign` writes",
            found=f"{len(data)} other bytes",
            remedy="The signature was changed or damaged: fetch the bundle again.",
        )
    return key, value
