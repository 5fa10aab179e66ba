"""Writes a bundle's golden files; `pocketlens.core.golden` says what they are and reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.golden import FIRST_TENSOR, GOLDEN_FOLDER, Golden

if TYPE_CHECKING:
    from pocketlens.export.reference import Reference

__all__ = ["draw_golden_pictures", "write_golden", "write_tensors"]

_SIDE_PX: Final = 128
# Neither square nor the size of any graph's input: resizing and cropping are both exercised.
_WIDTH_PX: Final = 112
# Four tensors of 96 x 96 pixels fit, one of 224 x 224 is more: the whole folder is to stay below 400 KB.
_TENSOR_BYTES: Final = 2**17


def draw_golden_pictures(root: Path, count: int, *, seed: int) -> list[Path]:
    """Draw `count` scenes of the test split into `root / "golden"` and return their paths."""
    from pocketlens.distill.scenes.grammar import sample_scene
    from pocketlens.distill.scenes.render import render

    folder = root / GOLDEN_FOLDER
    folder.mkdir(parents=True)
    paths = [folder / f"{index:02d}.png" for index in range(count)]
    left = (_SIDE_PX - _WIDTH_PX) // 2
    for index, path in enumerate(paths):
        pixels = render(sample_scene(seed + index, split="test"), size_px=_SIDE_PX)
        Image.fromarray(pixels[:, left : left + _WIDTH_PX]).save(path, optimize=True)
    return paths


def write_golden(root: Path, pictures: Sequence[Path], texts: Sequence[str], reference: "Reference") -> None:
    """Write what the eager student makes of golden `pictures` and `texts` beside the pictures."""
    folder = root / GOLDEN_FOLDER
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
    folder = root / GOLDEN_FOLDER
    stored = _TENSOR_BYTES // pixels[0].nbytes
    if stored:
        np.save(folder / "pixels.npy", pixels[:stored])
    Image.fromarray(pixels[0]).save(folder / FIRST_TENSOR, optimize=True)
