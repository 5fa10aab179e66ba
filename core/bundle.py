"""The bundle: one folder that ships. Its types, and how it is verified, loaded and written.

::

    NAME/                    closed world: a file that is not listed is an error, a link is an error
      manifest.json          `Manifest`, below
      graphs/<target>-<precision>/<role>.{onnx,pte,mlpackage}
      tokenizer.json         Hugging Face `tokenizers` format
      golden/                input pictures, expected pixels, embeddings and caption token ids
      MODEL_CARD.md
      SHA256SUMS             one line per file, the manifest included, itself excluded

The order is fixed: `SHA256SUMS` is compared with the folder, every file is hashed, and only then
is `manifest.json` parsed. Nothing unverified reaches a parser.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import msgspec

from pocketlens.core.errors import (
    BundleIncomplete,
    BundleMissing,
    BundleSchemaError,
    BundleTampered,
    storage_errors,
)
from pocketlens.core.preprocess import PreprocessSpec

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

SCHEMA_VERSION: Final = 1
"""The newest manifest schema that this pocketlens reads and the one that it writes."""

_MANIFEST: Final = "manifest.json"
_SUMS: Final = "SHA256SUMS"

Role = Literal["image_encoder", "text_encoder", "caption_prefill", "caption_decode"]
ROLES: Final[tuple[Role, ...]] = ("image_encoder", "text_encoder", "caption_prefill", "caption_decode")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all manifest records: immutable, unknown fields refused. msgspec does not inherit `kw_only`."""


class TensorSpec(_Record, frozen=True, kw_only=True):
    """One input or output of a graph. In `shape`, -1 is the free batch axis (always axis 0)."""

    name: str
    dtype: Literal["uint8", "int32", "float32"]
    shape: tuple[int, ...]


class Parity(_Record, frozen=True, kw_only=True):
    """How closely a graph answers like the eager fp32 student, measured on real pictures.

    `metric` is `cosine` (embeddings, per sample) or `token_agreement` (greedy captions, the share
    of pictures with identical ids); `minimum`, `p1` and `mean` are over `samples` pictures. A graph
    that cannot run on the exporting machine carries no `Parity` but a `note` in its record.
    """

    metric: Literal["cosine", "token_agreement"]
    minimum: float
    p1: float
    mean: float
    samples: int


class Latency(_Record, frozen=True, kw_only=True):
    """Wall time of one call at batch 1, milliseconds, on the machine that exported the bundle."""

    p50_ms: float
    p90_ms: float
    runs: int
    threads: int
    machine: str


class GraphRecord(_Record, frozen=True, kw_only=True):
    """One exported graph.

    `path` is relative to the bundle; for a folder (`.mlpackage`) `sha256` is its `tree_digest`.
    `engine` names the runtime that runs it. `notes` say in whole sentences what a reader must know:
    why there is no parity, why a quantized graph that is slower than its fp32 twin was accepted.
    `preferred` is false for a graph that must not be chosen by default.
    """

    role: Role
    target: str
    precision: str
    engine: Literal["onnxruntime", "executorch", "coreml"]
    path: str
    sha256: str
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity | None = None
    latency: Latency | None = None
    speedup_vs_fp32: float | None = None
    preferred: bool = True
    notes: tuple[str, ...] = ()
    tools: dict[str, str] = {}


class Quality(_Record, frozen=True, kw_only=True):
    """One measured figure: `value` of `metric` for `subject`, with a 95 % interval if there is one.

    `subject` is `teacher`, `student`, or `<target>-<precision>`.
    """

    subject: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    samples: int


class EmbeddingSpec(_Record, frozen=True, kw_only=True):
    """Shared picture and text space: vectors `(dim,)` float32 of unit norm, compared by `metric`."""

    dim: int
    metric: Literal["cosine"] = "cosine"


class TokenizerSpec(_Record, frozen=True, kw_only=True):
    """Where the tokenizer is and the ids that carry a role. `text_length` is the text encoder's T."""

    path: str = "tokenizer.json"
    vocab_size: int
    text_length: int
    pad_id: int
    bos_id: int
    eos_id: int


class CaptionSpec(_Record, frozen=True, kw_only=True):
    """Layout of the caption cache: `prefix_length` visual positions, then `max_tokens` text ones."""

    prefix_length: int
    max_tokens: int


class ConfidenceSpec(_Record, frozen=True, kw_only=True):
    """How raw caption features become a confidence.

    `weights` maps feature names to the coefficients of a logistic model
    `sigmoid(bias + sum(weight * feature))`; fitted on the validation split, never on test.
    `fitted_on` is the number of captions; 0 means that the coefficients are the built-in ones.
    """

    bias: float
    weights: dict[str, float]
    fitted_on: int


class TeacherRecord(_Record, frozen=True, kw_only=True):
    """A teacher of this student and the licence that its weights came under."""

    id: str
    licence: str
    task: Literal["embedding", "captioning"]


class Manifest(_Record, frozen=True, kw_only=True):
    """`manifest.json`. A newer `schema_version` is refused, an unknown field likewise."""

    schema_version: int = SCHEMA_VERSION
    name: str
    model_version: str
    tasks: tuple[Literal["embed", "caption"], ...]
    embedding: EmbeddingSpec
    preprocess: PreprocessSpec
    tokenizer: TokenizerSpec
    caption: CaptionSpec | None
    graphs: tuple[GraphRecord, ...]
    confidence: ConfidenceSpec | None = None
    quality: tuple[Quality, ...] = ()
    teachers: tuple[TeacherRecord, ...] = ()
    licence: str
    provenance: dict[str, str]


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle: its folder and its manifest."""

    root: Path
    manifest: Manifest

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


def load_bundle(root: str | os.PathLike[str]) -> Bundle:
    """Return the bundle at `root` after every byte of it was verified.

    Raises:
        BundleMissing: no such folder, no manifest, or a listed file is absent.
        BundleTampered: a hash differs, a file is not listed, or a link is inside.
        BundleSchemaError: a newer schema, or a malformed field.
    """
    folder = Path(root)
    verify_files(folder)
    return Bundle(folder.resolve(), _parse_manifest(folder / _MANIFEST))


def verify_files(root: Path) -> None:
    """Check that the folder holds exactly what its `SHA256SUMS` lists, bit for bit.

    Raises:
        BundleMissing: no such folder, no sums, or a listed file is absent.
        BundleTampered: a hash differs, a file is not listed, or a link is inside.
    """
    expected = _read_sums(root)
    present = set(_walk(root)) - {_SUMS}
    for name in sorted(expected.keys() - present):
        raise BundleMissing(
            f"bundle {root}",
            expected=f"the file {name}, which {_SUMS} lists",
            found="no such file",
            remedy="Copy or export the bundle again.",
        )
    for name in sorted(present - expected.keys()):
        raise BundleTampered(
            f"bundle {root}",
            expected="only files that its manifest lists",
            found=f"an extra file {name}",
            remedy="Remove the file, or fetch the bundle again from a source that you trust.",
        )
    for name, digest in sorted(expected.items()):
        found = file_sha256(root / name)
        if found != digest:
            raise BundleTampered(
                f"bundle file {root / name}",
                expected=f"SHA-256 {digest}",
                found=f"SHA-256 {found}",
                remedy="The file was changed or damaged: copy or export the bundle again.",
            )


def write_bundle(root: Path, manifest: Manifest, staged: Path) -> Bundle:
    """Turn the folder `staged` into the bundle `root`, atomically, and return it loaded.

    `staged` already holds graphs, tokenizer and golden files; this adds the manifest and the sums.
    A bundle that stood at `root` before is replaced only once the new one is complete.

    Raises:
        StorageFull: no space; `root` is as it was.
    """
    with storage_errors(root):
        (staged / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        lines = (f"{file_sha256(staged / name)}  {name}\n" for name in sorted(_walk(staged)) if name != _SUMS)
        (staged / _SUMS).write_text("".join(lines), encoding="utf-8")
        bundle = load_bundle(staged)
        root.parent.mkdir(parents=True, exist_ok=True)
        retired = root.with_name(f".{root.name}.retired")
        shutil.rmtree(retired, ignore_errors=True)
        if root.exists():
            root.rename(retired)
        staged.rename(root)
        shutil.rmtree(retired, ignore_errors=True)
    return Bundle(root.resolve(), bundle.manifest)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of one file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """Return one SHA-256 for a file, or for a folder: the hash of its sorted `digest  name` lines."""
    if path.is_file():
        return file_sha256(path)
    return _digest_lines(f"{file_sha256(path / name)}  {name}\n" for name in sorted(_walk(path)))


def _digest_lines(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def _walk(root: Path) -> Iterator[str]:
    """Yield every file below `root` as a relative POSIX path; a link or a special file is an error."""
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleTampered(
                    f"bundle {root}",
                    expected="plain files and folders",
                    found=f"a link or special file {path.relative_to(root)}",
                    remedy="A bundle never holds links: fetch it again from a source that you trust.",
                )
        for name in files:
            yield Path(folder, name).relative_to(root).as_posix()


def _read_sums(root: Path) -> dict[str, str]:
    if not root.is_dir():
        raise BundleMissing(
            f"bundle {root}",
            expected="a folder that holds a bundle",
            found="a file" if root.exists() else "nothing at that path",
            remedy="Check the path, or make a bundle with `pocketlens export`.",
        )
    path = root / _SUMS
    if not path.is_file() or path.is_symlink():
        raise BundleMissing(
            f"bundle {root}",
            expected=f"a file {_SUMS}",
            found="none",
            remedy="This folder is no bundle, or only part of one: copy or export it again.",
        )
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or not _is_plain(name) or name in sums:
            raise BundleTampered(
                f"{path}, line {number}",
                expected="64 hexadecimal digits, two spaces and a relative path, each path once",
                found=repr(line[:100]),
                remedy="The file was changed or damaged: copy or export the bundle again.",
            )
        sums[name] = digest
    if _MANIFEST not in sums:
        raise BundleTampered(
            str(path),
            expected=f"a line for {_MANIFEST}",
            found="none",
            remedy="The file was changed or damaged: copy or export the bundle again.",
        )
    return sums


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name


class _Versioned(msgspec.Struct):
    schema_version: int


def _parse_manifest(path: Path) -> Manifest:
    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise BundleSchemaError(
                str(path),
                expected=f"schema_version up to {SCHEMA_VERSION}",
                found=str(version),
                remedy="Upgrade pocketlens, or export the bundle with the installed version.",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleSchemaError(
            str(path),
            expected=f"a manifest of schema {SCHEMA_VERSION}",
            found=str(error),
            remedy="Export the bundle again; a manifest is never edited by hand.",
        ) from error
    _check_paths(path.parent, manifest)
    return manifest


def _check_paths(root: Path, manifest: Manifest) -> None:
    if not _is_plain(manifest.tokenizer.path) or not (root / manifest.tokenizer.path).is_file():
        raise BundleMissing(
            f"bundle {root}",
            expected=f"the tokenizer {manifest.tokenizer.path}",
            found="no such file in the bundle",
            remedy="Copy or export the bundle again.",
        )
    for record in manifest.graphs:
        if not _is_plain(record.path) or not (root / record.path).exists():
            raise BundleMissing(
                f"bundle {root}",
                expected=f"the {record.role} graph {record.path} for {record.target}-{record.precision}",
                found="no such file in the bundle",
                remedy="Copy or export the bundle again.",
            )
