"""Signing a bundle for publishing, in the format that model registries read.

OpenSSF's model-signing (https://github.com/sigstore/model-transparency) writes a Sigstore bundle: an
in-toto statement with the SHA-256 of every file, in a DSSE envelope. With a local elliptic-curve key it
needs no network and no transparency log; that is the mode used here. Keyless signing with an identity
needs the network and a browser: use its own command, `model_signing sign sigstore`, on the same folder.

The signature lies beside the bundle, as `NAME.model.sig`: inside, it would be a file that nothing lists.
It does not take the place of the Ed25519 signature in the bundle, which the runtime checks.

Needs the extra `publish`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import BundleError, BundleTampered, storage_errors

__all__ = ["sign_for_publishing", "signature_path", "verify_published"]


def signature_path(root: Path) -> Path:
    """Return where the signature of the bundle at `root` lies."""
    return root.with_name(f"{root.name}.model.sig")


def sign_for_publishing(root: Path, private_key: Path) -> Path:
    """Write the model-signing signature of the bundle at `root` beside it and return its path.

    Every byte of the bundle is verified before.

    Args:
        root: the bundle.
        private_key: P-256, P-384 or P-521, PEM, not encrypted.

    Raises:
        BundleError: there is no valid bundle, the key cannot be used, or model-signing is not installed.
        StorageFull: no space.
    """
    signing = _library("signing")
    folder = load_bundle(root).root
    path = signature_path(folder)
    part = path.with_name(f".{path.name}.part")
    try:
        with storage_errors(path):
            signing.Config().use_elliptic_key_signer(private_key=private_key).sign(folder, part)
            part.replace(path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        # AttributeError: what it makes of a key that is not on a curve, such as an Ed25519 one.
        part.unlink(missing_ok=True)
        raise BundleError(
            f"bundle {root}, key {private_key}",
            expected="an elliptic-curve private key (P-256, P-384 or P-521) in PEM form, not encrypted",
            found=str(error).partition("\n")[0][:200] or type(error).__name__,
            remedy="Make one with: openssl ecparam -name prime256v1 -genkey -noout -out publish.pem",
        ) from error
    return path


def verify_published(root: Path, public_key: Path) -> None:
    """Check the model-signing signature of the bundle at `root`, and that it covers every file.

    Raises:
        BundleTampered: it is absent or malformed, does not fit, or a file is extra or missing.
        BundleError: model-signing is not installed.
    """
    verifying = _library("verifying")
    from cryptography.exceptions import InvalidSignature

    folder = root.resolve()
    path = signature_path(folder)
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, path)
    except (InvalidSignature, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleTampered(
            f"bundle {root}",
            expected=f"the model-signing signature {path.name} by {public_key}, over every file",
            found=str(error).partition("\n")[0][:300] or type(error).__name__,
            remedy="Fetch bundle and signature again from the one who published them.",
        ) from error


def _library(name: str) -> ModuleType:
    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise BundleError(
            "signing for publishing",
            expected="the package model-signing",
            found=str(error),
            remedy="pip install 'pocketlens[publish]'",
        ) from error
