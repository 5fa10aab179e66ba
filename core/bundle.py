"""The bundle: one folder that ships, and how it is loaded and written.

::

    NAME/                    closed world: a file that is not listed is an error, a link is an error
      manifest.json          `Manifest`
      graphs/<target>-<precision>/<role>.{onnx,pte,mlpackage}
      tokenizer.json         Hugging Face `tokenizers` format
      golden/                input pictures, expected pixels, embeddings and caption token ids
      MODEL_CARD.md
      SHA256SUMS             one line per file, the manifest included, itself and the signature excluded
      signature              optional: Ed25519 over SHA256SUMS

The order is fixed: the signature of `SHA256SUMS` is checked, its lines are compared with the folder,
every file is hashed, and only then is `manifest.json` parsed, from the very bytes that were hashed.
Nothing unverified reaches a parser. Types are in `pocketlens.core.manifest`, hashes in
`pocketlens.core.seal`, signatures in `pocketlens.core.signature`.
"""

import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from pocketlens.core.errors import BundleIncomplete, storage_errors
from pocketlens.core.manifest import (
    ROLES,
    SCHEMA_VERSION,
    CaptionSpec,
    ConfidenceSpec,
    EmbeddingSpec,
    GraphRecord,
    Latency,
    Manifest,
    Parity,
    Quality,
    Role,
    TeacherRecord,
    TensorSpec,
    TokenizerSpec,
    check_paths,
    decode_manifest,
    encode_manifest,
)
from pocketlens.core.replace import check_replaceable, recover, replace_folder
from pocketlens.core.seal import (
    MANIFEST_FILE,
    SUMS_FILE,
    file_sha256,
    read_verified,
    sums_of,
    tree_digest,
    verified_sums,
    verify_files,
)
from pocketlens.core.signature import SIGNATURE_FILE, PublicKey

__all__ = [
    "ROLES",
    "SCHEMA_VERSION",
    "Bundle",
    "CaptionSpec",
    "ConfidenceSpec",
    "EmbeddingSpec",
    "GraphRecord",
    "Latency",
    "Manifest",
    "Parity",
    "Quality",
    "Role",
    "TeacherRecord",
    "TensorSpec",
    "TokenizerSpec",
    "file_sha256",
    "load_bundle",
    "tree_digest",
    "verify_files",
    "write_bundle",
]


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle: its folder, its manifest, and the key that signed it, if one did."""

    root: Path
    manifest: Manifest
    signer: PublicKey | None = None

    def graph(self, role: Role, *, target: str, precision: str) -> GraphRecord:
        """Return the record of one graph.

        Raises:
            BundleIncomplete: there is none; the message lists the variants that exist.
        """
        for record in self.manifest.graphs:
            if (record.role, record.target, record.precision) == (role, target, precision):
                return record
        variants = ", ".join(sorted(f"{t}-{p}" for t, p in self.variants(role))) or "none"
        raise BundleIncomplete(
            f"bundle {self.root}",
            expected=f"a {role} graph for {target}-{precision}",
            found=f"variants of {role}: {variants}",
            remedy="Ask for one of those, or export the missing one with `pocketlens export`.",
        )

    def variants(self, role: Role) -> tuple[tuple[str, str], ...]:
        """Return the (target, precision) pairs that exist for `role`, in manifest order."""
        return tuple((g.target, g.precision) for g in self.manifest.graphs if g.role == role)

    def path(self, record: GraphRecord) -> Path:
        """Return the absolute path of a graph's file or folder."""
        return self.root / record.path

    @property
    def tokenizer_path(self) -> Path:
        """Absolute path of the tokenizer file."""
        return self.root / self.manifest.tokenizer.path


def load_bundle(root: str | os.PathLike[str], *, trusted_keys: Collection[PublicKey] = ()) -> Bundle:
    """Return the bundle at `root` after every byte of it was verified.

    Args:
        root: the bundle's folder.
        trusted_keys: with any of them, the bundle must be signed by one of them.

    Raises:
        BundleMissing: no such folder, no manifest, or a listed file is absent.
        BundleTampered: a hash differs, a file is not listed, a link is inside, or the signature is
            wrong, or absent though `trusted_keys` were given.
        BundleSchemaError: a newer schema, or a malformed field.
        BundleError: a file cannot be read, or the bundle is signed and `cryptography` is not installed.
    """
    folder = Path(root)
    sums, signer = verified_sums(folder, trusted_keys=trusted_keys)
    manifest = decode_manifest(read_verified(folder, MANIFEST_FILE, sums), str(folder / MANIFEST_FILE))
    check_paths(manifest, sums, f"bundle {root}")
    return Bundle(folder.resolve(), manifest, signer)


def write_bundle(root: Path, manifest: Manifest, staged: Path) -> Bundle:
    """Turn the folder `staged` into the bundle `root`, in one step, and return it loaded.

    `staged` already holds graphs, tokenizer and golden files; this adds the manifest and the sums.
    A signature in it belongs to what it was before and is removed. A bundle that stood at `root` is
    replaced only once the new one is complete; see `pocketlens.core.replace`.

    Raises:
        StorageFull: no space; `root` is as it was.
        BundleError: at `root` stands something else than a bundle, or `staged` makes none.
    """
    with storage_errors(root):
        target = Path(os.path.realpath(root))
        check_replaceable(target, SUMS_FILE)
        (staged / SIGNATURE_FILE).unlink(missing_ok=True)
        (staged / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
        (staged / SUMS_FILE).write_text(sums_of(staged), encoding="utf-8")
        bundle = load_bundle(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        replace_folder(staged, target)
    return Bundle(target, bundle.manifest)
