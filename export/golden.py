"""Golden files: pictures that ship with what a correct device makes of them.

::

    golden/NN.png              drawn by `pocketlens.distill.scenes`, so free to ship (CC0)
    golden/pixels.npy          uint8 (K, H, W, 3): what preprocessing must give, bit for bit, for the
                               first K pictures: as many as fit into 128 KiB; no file where none does
    golden/tensor-00.png       the first of them as a picture
    golden/embeddings.npy      float32 (N, D) of the eager student
    golden/text_embeddings.npy float32 (M, D)
    golden/golden.json         `Golden`
    golden/vectors.json        what a port is held to, stage by stage: `pocketlens.export.golden_vectors`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import BundleSchemaError

if TYPE_CHECKING:
    from pocketlens.export.reference import Reference

__all__ = ["Golden", "GoldenSet", "draw_golden_pictures", "read_golden", "write_golden", "write_tensors"]

_FOLDER: Final = "golden"
_FIRST_TENSOR: Final = "tensor-00.png"
_SIDE_PX: Final = 128
# Neither square nor the size of any graph's input: resizing and cropping are both exercised.
_WIDTH_PX: Final = 112
# Four tensors of 96 x 96 pixels fit, one of 224 x 224 is more: the whole folder is to stay below 400 KB.
_TENSOR_BYTES: Final = 2**17


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`golden.json`: file names and greedy caption ids by picture, and texts with their ids."""

    pictures: tuple[str, ...]
    caption_ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    text_ids: tuple[tuple[int, ...], ...]


class GoldenSet(msgspec.Struct, frozen=True):
    """Golden files, read: `pixels (K, H, W, 3)` uint8, `embeddings (N, D)`, `text_embeddings (M, D)`; 1 <= K <= N."""

    folder: Path
    golden: Golden
    pixels: NDArray[np.uint8]
    embeddings: NDArray[np.float32]
    text_embeddings: NDArray[np.float32]


def draw_golden_pictures(root: Path, count: int, *, seed: int) -> list[Path]:
    """Draw `count` scenes of the test split into `root / "golden"` and return their paths."""
    from pocketlens.distill.scenes.grammar import sample_scene
    from pocketlens.distill.scenes.render import render

    folder = root / _FOLDER
    folder.mkdir(parents=True)
    paths = [folder / f"{index:02d}.png" for index in range(count)]
    left = (_SIDE_PX - _WIDTH_PX) // 2
    for index, path in enumerate(paths):
        pixels = render(sample_scene(seed + index, split="test"), size_px=_SIDE_PX)
        Image.fromarray(pixels[:, left : left + _WIDTH_PX]).save(path, optimize=True)
    return paths


def write_golden(root: Path, pictures: Sequence[Path], texts: Sequence[str], reference: "Reference") -> None:
    """Write what the eager student makes of golden `pictures` and `texts` beside the pictures."""
    folder = root / _FOLDER
    write_tensors(root, reference.pixels)
    np.save(folder / "embeddings.npy", reference.embeddings)
    np.save(folder / "text_embeddings.npy", reference.text_embeddings)
    golden = Golden(
        pictures=tuple(path.name for path in pictures),
        caption_ids=tuple(tuple(ids) for ids in reference.captions),
        texts=tuple(texts),
        text_ids=tuple(tuple(int(value) for value in row) for row in reference.ids),
    )
    (folder / "golden.json").write_bytes(msgspec.json.format(msgspec.json.encode(golden), indent=1))


def write_tensors(root: Path, pixels: NDArray[np.uint8]) -> None:
    """Write the expected tensors of golden pictures, `pixels (N, H, W, 3)`, as far as the size allows."""
    folder = root / _FOLDER
    stored = _TENSOR_BYTES // pixels[0].nbytes
    if stored:
        np.save(folder / "pixels.npy", pixels[:stored])
    Image.fromarray(pixels[0]).save(folder / _FIRST_TENSOR, optimize=True)


def read_golden(root: Path) -> GoldenSet:
    """Return the golden files of the bundle at `root`.

    Raises:
        BundleSchemaError: a file is missing or malformed.
    """
    folder = root / _FOLDER
    try:
        golden = msgspec.json.decode((folder / "golden.json").read_bytes(), type=Golden)
        if (folder / "pixels.npy").exists():
            pixels = np.load(folder / "pixels.npy", allow_pickle=False)
        else:
            with Image.open(folder / _FIRST_TENSOR) as first:
                pixels = np.array(first)[None]
        arrays = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("embeddings", "text_embeddings")]
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise BundleSchemaError(
            str(folder),
            expected="golden files as `pocketlens export` writes them",
            found=str(error),
            remedy="Export the bundle again.",
        ) from error
    return GoldenSet(folder, golden, pixels, *arrays)
