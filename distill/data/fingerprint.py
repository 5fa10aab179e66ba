"""What tells one picture from another: the hash of its file, and a hash of its look.

The look is a difference hash: the picture in grey, 9 x 8 and 8 x 9 pixels, and for each pair of neighbours whether it
grows brighter to the right (64 bits) and downwards (64 bits). Re-encoding, resizing and small changes of colour leave
nearly all bits as they are.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.picture_source import read_bytes
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.data.sample import PictureFile, as_source

__all__ = ["LOOK_BYTES", "Fingerprint", "fingerprint", "fingerprints", "look"]

LOOK_BYTES: Final = 16

_SIDE: Final = 64
_SPEC: Final = PreprocessSpec(height_px=_SIDE, width_px=_SIDE, fit="squash", filter="bilinear")


class Fingerprint(NamedTuple):
    """A picture's hashes, or why it cannot be read.

    Attributes:
        sha256: of the file, in hex; empty for a file that cannot be read.
        look: 16 bytes; empty for a picture that cannot be read.
        fault: the kind of the `PictureError`, or empty.
        detail: its message.
    """

    sha256: str
    look: bytes
    fault: str = ""
    detail: str = ""


def fingerprint(picture: PictureFile) -> Fingerprint:
    """Return the hashes of `picture`; a broken one has a fault and raises nothing."""
    digest = ""
    try:
        data = read_bytes(as_source(picture))
        digest = hashlib.sha256(data).hexdigest()
        return Fingerprint(digest, look(preprocess(data, _SPEC)))
    except PictureError as error:
        return Fingerprint(digest, b"", error.kind, f"{error.expected}; found {error.found}")


def fingerprints(pictures: Sequence[PictureFile]) -> list[Fingerprint]:
    """Return the hashes of each picture, in order."""
    return [fingerprint(picture) for picture in pictures]


def look(pixels: NDArray[np.uint8]) -> bytes:
    """Return the 128-bit difference hash of `pixels (64, 64, 3)`, 16 bytes."""
    grey = Image.fromarray(pixels).convert("L")
    wide = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    tall = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(wide[:, 1:] > wide[:, :-1]).ravel(), (tall[1:] > tall[:-1]).ravel()])
    return np.packbits(bits).tobytes()
