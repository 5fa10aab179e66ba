"""A golden input as the confusions need it: stored samples, right pixels, and what wrong decoders make of a file."""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.preprocess import PreprocessSpec, decode
from pocketlens.export.confusions import Picture
from pocketlens.export.golden_steps import load_samples, steps_of
from pocketlens.export.golden_vectors import Case

__all__ = ["picture_of"]

_ORIENTATION_TAG: Final = 0x0112


def picture_of(root: Path, case: Case, spec: PreprocessSpec) -> Picture:
    """Return the input of `case`; `spec` is the one that it is made with."""
    pixels: NDArray[np.uint8] = steps_of(root, case, spec)["pixels"]
    if not case.is_file:
        return Picture(load_samples(root, case), case.orientation, pixels)
    data = (root / case.input).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        if image.format == "PNG" and "icc_profile" not in image.info:
            stored = image.convert("RGBA") if image.mode == "P" else image
            return Picture(np.asarray(stored), orientation, pixels)
    return Picture(None, orientation, pixels, _variants(data, spec))


def _variants(data: bytes, spec: PreprocessSpec) -> dict[str, NDArray[np.uint8]]:
    found: dict[str, NDArray[np.uint8]] = {}
    with Image.open(io.BytesIO(data)) as image:
        if "icc_profile" in image.info:
            found["no profile"] = np.array(image.convert("RGB"))
        if image.mode == "CMYK":
            inverted = Image.frombytes("CMYK", image.size, bytes(255 - np.asarray(image)))
            found["inverted"] = decode(inverted, spec)
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "JPEG" and image.mode == "RGB":
            full = image.size
            image.draft("RGB", (spec.width_px, spec.height_px))
            if image.size != full:
                found["draft"] = np.array(image)
    return found
