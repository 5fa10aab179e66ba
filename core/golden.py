"""Golden files: pictures that ship with what a correct device makes of them, and how they are read.

::

    golden/NN.png              drawn by `pocketlens.distill.scenes`, so free to ship (CC0)
    golden/pixels.npy          uint8 (K, H, W, 3): what preprocessing must give, bit for bit, for the
                               first K pictures: as many as fit into 128 KiB; no file where none does
    golden/tensor-00.png       the first of them as a picture
    golden/embeddings.npy      float32 (N, D) of the eager student
    golden/text_embeddings.npy float32 (M, D)
    golden/golden.json         `Golden`
    golden/vectors.json        what a port is held to, stage by stage: `pocketlens.export.golden_vectors`

They are written by `pocketlens.export.golden`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import BundleSchemaError

__all__ = ["FIRST_TENSOR", "GOLDEN_FOLDER", "Golden", "GoldenSet", "read_golden"]

GOLDEN_FOLDER: Final = "golden"
"""Where a bundle keeps them."""

FIRST_TENSOR: Final = "tensor-00.png"
"""The first expected tensor, which is there also when none fits into `pixels.npy`."""


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`golden.json`: file names and greedy caption ids by picture, and texts with their ids.

    The ids of a caption end with the end token. A bundle that does not caption has none.
    """

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

    @property
    def text_ids(self) -> NDArray[np.int32]:
        """Ids of the texts, `(M, T)`."""
        return np.array(self.golden.text_ids, dtype=np.int32)

    def of(self, rows: Sequence[int], pixels: NDArray[np.uint8]) -> "GoldenSet":
        """Return the answers of the pictures `rows` alone, beside their `pixels`."""
        captions = tuple(self.golden.caption_ids[row] for row in rows if self.golden.caption_ids)
        return msgspec.structs.replace(
            self,
            pixels=pixels,
            embeddings=self.embeddings[list(rows)],
            golden=msgspec.structs.replace(self.golden, caption_ids=captions),
        )


def read_golden(root: Path) -> GoldenSet:
    """Return the golden files of the bundle at `root`.

    Raises:
        BundleSchemaError: a file is missing or malformed, or they do not fit together.
    """
    folder = root / GOLDEN_FOLDER
    try:
        golden = msgspec.json.decode((folder / "golden.json").read_bytes(), type=Golden)
        if (folder / "pixels.npy").exists():
            pixels = np.load(folder / "pixels.npy", allow_pickle=False)
        else:
            with Image.open(folder / FIRST_TENSOR) as first:
                pixels = np.array(first)[None]
        images, texts = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("embeddings", "text_embeddings")
        )
        if not 0 < len(pixels) <= len(images) or len(golden.text_ids) != len(texts):
            counts = f"{len(pixels)} tensors, {len(images)} embeddings"
            raise ValueError(f"{counts}; {len(golden.text_ids)} texts, {len(texts)} embeddings")
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise BundleSchemaError(
            str(folder),
            expected="golden files as `pocketlens export` writes them",
            found=str(error),
            remedy="Export the bundle again.",
        ) from error
    return GoldenSet(folder, golden, pixels, images, texts)
