"""`golden/vectors.json`: what a port must give, stage by stage, for inputs that make every stage matter.

::

    golden/vectors.json               `Vectors`
    golden/cases/*.npy                decoded pixels: uint8 or uint16 (h, w[, C]), C = 2, 3 or 4
    golden/cases/*.png, *.jpg         files
    golden/cases/*.pixels.npy         decoded pixels of a lossy file, uint8 (h, w, 3)
    golden/wrong_normalisation.npy    float16 (K, P, D): embeddings of K wrong normalisations

Cases stand in the order of a ladder: each needs, besides the stage that it is there for, only
stages that earlier cases are there for.
"""

import hashlib
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import BundleSchemaError
from pocketlens.core.preprocess import PreprocessSpec

__all__ = [
    "CASES_FOLDER",
    "STAGES",
    "VECTORS_FILE",
    "WRONG_NORMALISATION_FILE",
    "Case",
    "Fit",
    "Result",
    "Stage",
    "Step",
    "Tolerance",
    "Vectors",
    "array_sha256",
    "read_vectors",
]

Stage = Literal[
    "layout",
    "orientation",
    "grey",
    "bits",
    "alpha",
    "geometry",
    "resize",
    "decode",
    "profile",
    "cmyk",
    "normalise",
    "weights",
    "embedding",
    "text",
    "caption",
]
"""What can be wrong, in the order in which a port should be put right."""
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

Step = Literal["upright", "pixels", "wide", "tall", "tensor"]
"""Intermediate results, in order: turned upright; opaque sRGB of 8 bits; after the horizontal pass;
after the vertical pass; cut or padded to the target."""

CASES_FOLDER: Final = "golden/cases"
VECTORS_FILE: Final = "golden/vectors.json"
WRONG_NORMALISATION_FILE: Final = "golden/wrong_normalisation.npy"
_VERSION: Final = 1


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a `PreprocessSpec` that decides pixels, for a case that is not made with the bundle's."""

    height_px: int
    width_px: int
    fit: Literal["crop", "squash", "pad"] = "crop"
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    matte: tuple[int, int, int] = (255, 255, 255)
    pad_colour: tuple[int, int, int] = (0, 0, 0)

    def spec(self) -> PreprocessSpec:
        """Return the whole spec, limits and formats at their defaults."""
        return PreprocessSpec(**msgspec.structs.asdict(self))


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At least `share` of all levels must be within `levels` of the expected ones. Bit-exact by default."""

    levels: int = 0
    share: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether every bit counts, so that a SHA-256 says it all."""
        return self.levels == 0 and self.share == 1.0

    def met(self, found: NDArray[Any], expected: NDArray[Any]) -> float:
        """Return the share of levels of `found` within `levels` of `expected`; 0 if their shapes differ."""
        if found.shape != expected.shape:
            return 0.0
        off = np.abs(found.astype(np.int32) - expected.astype(np.int32))
        return float(np.mean(off <= self.levels))


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One intermediate result: its shape, and the SHA-256 of its uint8 (or uint16, little-endian) samples."""

    shape: tuple[int, ...]
    sha256: str


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One input with everything that becomes of it.

    Attributes:
        name: unique; a candidate's tensor for it is `NAME.npy` or `NAME.rgb`.
        stage: what this case is there for.
        needs: further stages that it passes through.
        input: the file, relative to the bundle.
        orientation: EXIF orientation of a decoded input; a file carries its own.
        fit: `None` takes the bundle's preprocessing spec.
        tolerance: how closely `pixels` and `tensor` must agree.
        pixels: file with the decoded pixels that the exporting machine found, for a lossy input.
        results: by step, as the exporting machine found them; a step that changes nothing is left
            out, but for `tensor`.
    """

    name: str
    stage: Stage
    needs: tuple[Stage, ...] = ()
    input: str
    orientation: int = 1
    fit: Fit | None = None
    tolerance: Tolerance = Tolerance()
    pixels: str | None = None
    results: dict[Step, Result] = {}

    @property
    def is_file(self) -> bool:
        """Whether the input is an encoded picture, not decoded pixels."""
        return not self.input.endswith(".npy")


class Vectors(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`vectors.json`.

    Attributes:
        version: of this file's format.
        decoders: name and version of what decoded the files: `pillow`, `libjpeg-turbo`, `littlecms2`.
        cases: the ladder.
        tensors: SHA-256 of the expected tensor of each golden picture, in the order of `golden.json`.
        cosine: least cosine of an embedding by precision, where no parity was measured.
        wrong_normalisations: what the K rows of `wrong_normalisation.npy` were computed with, in words.
    """

    version: int = _VERSION
    decoders: dict[str, str]
    cases: tuple[Case, ...]
    tensors: tuple[str, ...]
    cosine: dict[str, float]
    wrong_normalisations: tuple[str, ...] = ()


def array_sha256(array: NDArray[Any]) -> str:
    """Return the SHA-256 of the samples in C order, little-endian, without shape or type."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def read_vectors(root: Path) -> Vectors | None:
    """Return the vectors of the bundle at `root`; `None` for a bundle from before there were any.

    Raises:
        BundleSchemaError: malformed, or of a newer format.
    """
    path = root / VECTORS_FILE
    if not path.exists():
        return None
    try:
        vectors = msgspec.json.decode(path.read_bytes(), type=Vectors)
    except (OSError, msgspec.MsgspecError) as error:
        raise _malformed(path, str(error)) from error
    if vectors.version > _VERSION:
        raise _malformed(path, f"version {vectors.version}")
    names = [case.name for case in vectors.cases]
    if len(set(names)) < len(names):
        raise _malformed(path, "a case's name twice")
    for case in vectors.cases:
        for part in (case.input, case.pixels or ""):
            if part.startswith("/") or ".." in part or "\\" in part:
                raise _malformed(path, f"the path {part!r}")
    return vectors


def _malformed(path: Path, found: str) -> BundleSchemaError:
    return BundleSchemaError(
        str(path),
        expected=f"golden vectors of format {_VERSION}, as `pocketlens export` writes them",
        found=found,
        remedy="Export the bundle again, or upgrade pocketlens.",
    )
