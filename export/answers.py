"""What another device hands in, read from a folder.

::

    NAME.npy | NAME.rgb     the tensor for the golden case NAME: uint8 (H, W, 3); `.rgb` holds the bytes alone
    NAME.STEP.npy           an intermediate result: `upright`, `pixels`, `wide` or `tall` (optional)
    embeddings.npy          float32 (N, D), one row a golden picture
    text_embeddings.npy     float32 (M, D), one row a golden text
    text_ids.json           lists of token ids, one a golden text
    captions.json           lists of token ids, one a golden picture
"""

from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.golden_steps import case_spec
from pocketlens.export.golden_vectors import Stage, Step, Vectors

__all__ = ["Answers", "Handed", "Ids", "Tensor", "read_answers", "tensor_of"]

_STEPS: Final[tuple[Step, ...]] = get_args(Step)
Ids = tuple[tuple[int, ...], ...]


class Handed(msgspec.Struct, frozen=True):
    """The answer to one case: its tensor, as it came, and intermediate results where there are any."""

    tensor: NDArray[Any]
    steps: dict[Step, NDArray[Any]]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was handed in; `None` for what was not."""

    cases: dict[str, Handed]
    embeddings: NDArray[Any] | None = None
    text_embeddings: NDArray[Any] | None = None
    text_ids: Ids | None = None
    captions: Ids | None = None

    @property
    def model_stages(self) -> set[Stage]:
        """The stages of the model that these answers reach."""
        reached: set[Stage] = set()
        if self.embeddings is not None:
            reached |= {"normalise", "weights", "embedding"}
        if self.text_embeddings is not None or self.text_ids is not None:
            reached.add("text")
        if self.captions is not None:
            reached.add("caption")
        return reached

    @property
    def model_parts(self) -> int:
        """How many of the model's four answers there are."""
        parts = (self.embeddings, self.text_embeddings, self.text_ids, self.captions)
        return sum(part is not None for part in parts)


def read_answers(folder: Path, vectors: Vectors, spec: PreprocessSpec) -> Answers:
    """Return what is in `folder`; files of other names are not looked at.

    Raises:
        DataError: nothing that is recognised is there, or a file is malformed.
    """
    cases: dict[str, Handed] = {}
    for case in vectors.cases:
        tensor = _array(folder / f"{case.name}.npy")
        if tensor is None:
            own = case_spec(case, spec)
            tensor = _raw(folder / f"{case.name}.rgb", (own.height_px, own.width_px, 3))
        steps = {step: _array(folder / f"{case.name}.{step}.npy") for step in _STEPS}
        if tensor is not None:
            cases[case.name] = Handed(tensor, {step: array for step, array in steps.items() if array is not None})
    answers = Answers(
        cases=cases,
        embeddings=_array(folder / "embeddings.npy"),
        text_embeddings=_array(folder / "text_embeddings.npy"),
        text_ids=_ids(folder / "text_ids.json"),
        captions=_ids(folder / "captions.json"),
    )
    if not cases and not answers.model_parts:
        raise DataError(
            f"answers in {folder}",
            expected=f"files such as {vectors.cases[0].name}.npy, embeddings.npy or captions.json",
            found="none of them" if folder.is_dir() else "no such folder",
            remedy="Name each tensor after its case in golden/vectors.json.",
        )
    return answers


def _array(path: Path) -> NDArray[Any] | None:
    if not path.exists():
        return None
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _malformed(path, "an array as numpy.save writes it", str(error)) from error
    if found.dtype.kind not in "uif":
        raise _malformed(path, "numbers", str(found.dtype))
    return found


def _raw(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _malformed(path, "a file", str(error)) from error
    if len(data) != np.prod(shape):
        raise _malformed(path, f"{np.prod(shape)} bytes, {shape}", f"{len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _ids(path: Path) -> Ids | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ids)
    except (OSError, msgspec.MsgspecError) as error:
        raise _malformed(path, "lists of token ids", str(error)) from error


def _malformed(path: Path, expected: str, found: str) -> DataError:
    return DataError(str(path), expected=expected, found=found[:300], remedy="Write it again; see docs/verify.md.")


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """What was handed in as uint8 (H, W, 3), as far as that can be done, and what is wrong with its form."""

    levels: NDArray[np.uint8] | None
    complaint: str = ""
    figure: str = ""


def tensor_of(array: NDArray[Any], spec: PreprocessSpec) -> Tensor:
    """Return `array` judged by its form alone: shape, type and range."""
    shape = (spec.height_px, spec.width_px, 3)
    figure, complaint = f"{array.dtype} {array.shape}", ""
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.shape != shape and array.shape == (3, *shape[:2]):
        array, complaint = array.transpose(1, 2, 0), "planes (3, H, W) in place of pixels (H, W, 3)"
    if array.shape != shape:
        return Tensor(levels=None, complaint="the tensor has another size", figure=f"{figure}, not {shape}")
    if array.dtype == np.uint8:
        return Tensor(levels=np.ascontiguousarray(array), complaint=complaint, figure=figure)
    if not np.isfinite(array).all():
        return Tensor(levels=None, complaint="levels that are not finite", figure=figure)
    least, greatest = float(array.min()), float(array.max())
    figure = f"{figure}, levels {least:.2f} to {greatest:.2f}"
    if least < 0:
        return Tensor(levels=None, complaint="the tensor is normalised already, which the graph does", figure=figure)
    if greatest > 255:
        return Tensor(levels=None, complaint="levels above 255", figure=figure)
    if array.dtype.kind == "f" and greatest <= 1:
        return Tensor(levels=np.rint(array * 255).astype(np.uint8), complaint="levels in 0..1", figure=figure)
    levels = np.rint(array).astype(np.uint8)
    if (array != levels).any():
        return Tensor(levels=levels, complaint="levels that are not rounded to 8 bits", figure=figure)
    return Tensor(levels=levels, complaint=complaint, figure=figure)
