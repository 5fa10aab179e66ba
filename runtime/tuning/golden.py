"""The golden inputs of a bundle and what a right graph answers, as far as graphs go.

The files are written by `pocketlens.export.golden`, whose module text describes them. Letters: `K` pictures
whose pixels are stored, `D` embedding, `M` texts of `T` ids.
"""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import BundleSchemaError

__all__ = ["GoldenAnswers", "read_answers"]


class _Golden(msgspec.Struct, frozen=True):
    caption_ids: tuple[tuple[int, ...], ...]
    text_ids: tuple[tuple[int, ...], ...]


class GoldenAnswers(msgspec.Struct, frozen=True):
    """Inputs and answers.

    Attributes:
        pixels: `(K, H, W, 3)` uint8.
        embeddings: `(K, D)` float32 of those pixels.
        captions: greedy caption ids of those pixels, the end token included; empty without captions.
        ids: `(M, T)` int32.
        text_embeddings: `(M, D)` float32 of those ids.
    """

    pixels: NDArray[np.uint8]
    embeddings: NDArray[np.float32]
    captions: tuple[tuple[int, ...], ...]
    ids: NDArray[np.int32]
    text_embeddings: NDArray[np.float32]


def read_answers(root: Path) -> GoldenAnswers:
    """Return the golden answers of the verified bundle at `root`.

    Raises:
        BundleSchemaError: a file is missing or malformed, or they do not fit together.
    """
    folder = root / "golden"
    try:
        golden = msgspec.json.decode((folder / "golden.json").read_bytes(), type=_Golden)
        if (folder / "pixels.npy").exists():
            pixels = np.load(folder / "pixels.npy", allow_pickle=False)
        else:
            with Image.open(folder / "tensor-00.png") as first:
                pixels = np.array(first)[None]
        embeddings, texts = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("embeddings", "text_embeddings")
        )
        ids = np.array(golden.text_ids, dtype=np.int32)
        if not 0 < len(pixels) <= len(embeddings) or len(ids) != len(texts):
            raise ValueError(f"{len(pixels)} pictures, {len(embeddings)} embeddings; {len(ids)} texts, {len(texts)}")
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise BundleSchemaError(
            str(folder),
            expected="golden files as `pocketlens export` writes them",
            found=str(error),
            remedy="Export the bundle again.",
        ) from error
    count = len(pixels)
    return GoldenAnswers(pixels, embeddings[:count], golden.caption_ids[:count], ids, texts)
