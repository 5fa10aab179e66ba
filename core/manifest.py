"""The manifest of a bundle: its types, and how its bytes become one.

`decode_manifest` takes bytes, not a path: whoever calls it has compared their hash before
(`pocketlens.core.seal`). Nothing here opens a file.
"""

from collections.abc import Collection
from typing import Annotated, Final, Literal

import msgspec

from pocketlens.core.errors import BundleMissing, BundleSchemaError
from pocketlens.core.names import name_fault
from pocketlens.core.preprocess import PreprocessSpec

__all__ = [
    "ROLES",
    "SCHEMA_VERSION",
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
    "check_paths",
    "decode_manifest",
    "encode_manifest",
]

SCHEMA_VERSION: Final = 2
"""The newest manifest schema that this pocketlens reads and the one that it writes."""

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
    `preferred` is false for a graph that must not be chosen by default. `settings` are options, by
    name, with which the engine must run the graph; empty for an engine that needs none. Since schema 2.
    """

    role: Role
    target: str
    precision: str
    engine: Literal[
        "onnxruntime", "executorch", "coreml", "executorch_coreml", "executorch_vulkan", "tensorrt", "litert"
    ]
    path: str
    sha256: str
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity | None = None
    latency: Latency | None = None
    speedup_vs_fp32: float | None = None
    preferred: bool = True
    settings: dict[str, str] = {}
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
    """`manifest.json`. A newer `schema_version` is refused, an unknown field likewise.

    `release` counts upwards by one with every release of the model called `name`: an installation
    refuses a smaller number than it has seen (`pocketlens.core.release`). 0 means that releases are
    not counted. Since schema 2; absent before, which reads as 0.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    model_version: str
    release: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
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


class _Versioned(msgspec.Struct):
    schema_version: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Return `manifest.json` as it is written: UTF-8, indented, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, what: str) -> Manifest:
    """Return the manifest that `data` holds; `what` names it in messages.

    Raises:
        BundleSchemaError: a newer schema, or a malformed field.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise BundleSchemaError(
                what,
                expected=f"schema_version up to {SCHEMA_VERSION}",
                found=str(version),
                remedy="Upgrade pocketlens, or export the bundle with the installed version.",
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A string that is not UTF-8, and a hundred thousand brackets: msgspec says these in Python's own errors.
        raise BundleSchemaError(
            what,
            expected=f"a manifest of schema {SCHEMA_VERSION} or older",
            found=str(error),
            remedy="Export the bundle again; a manifest is never edited by hand.",
        ) from error


def check_paths(manifest: Manifest, names: Collection[str], what: str) -> None:
    """Check that tokenizer and graphs are among `names`, the verified files of the bundle.

    Raises:
        BundleMissing: one is not; an absolute path or `..` can never be.
    """
    tokenizer = manifest.tokenizer.path
    if tokenizer not in names:
        raise _absent(what, f"the tokenizer {tokenizer}")
    folders = {name[:end] for name in names for end, letter in enumerate(name) if letter == "/"}
    for record in manifest.graphs:
        if name_fault(record.path) or (record.path not in names and record.path not in folders):
            raise _absent(what, f"the {record.role} graph {record.path} for {record.target}-{record.precision}")


def _absent(what: str, expected: str) -> BundleMissing:
    return BundleMissing(
        what,
        expected=expected,
        found="no such file in the bundle",
        remedy="Copy or export the bundle again.",
    )
