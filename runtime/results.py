"""What the lens answers with, beside plain vectors and captions."""

from typing import TYPE_CHECKING

import msgspec

from pocketlens.core.captions import Caption
from pocketlens.core.errors import PictureError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CaptionPiece", "Description", "ReadEmbedding", "Refusal"]


class Refusal(msgspec.Struct, frozen=True, eq=False):
    """A picture of a batch that was refused. It stands in the place of that picture's result.

    Attributes:
        index: position of the picture among those that were handed in, from 0.
        source: the path, or words for what has none.
        error: why; `error.kind` is one of `pocketlens.core.errors.PICTURE_KINDS`.
    """

    index: int
    source: str
    error: PictureError


class ReadEmbedding(msgspec.Struct, frozen=True, eq=False):
    """The vector of a picture whose bytes were read for it.

    Attributes:
        outcome: `(D,)` float32, unit norm, or why there is none.
        sha256: of the bytes, hexadecimal; `None` where they could not be read.
    """

    outcome: "NDArray[np.float32] | Refusal"
    sha256: str | None


class Description(msgspec.Struct, frozen=True, eq=False):
    """Both answers of one pass of the image encoder.

    Attributes:
        embedding: `(D,)` float32, unit norm.
        caption: the caption, after the fallback if there is one.
    """

    embedding: "NDArray[np.float32]"
    caption: Caption


class CaptionPiece(msgspec.Struct, frozen=True):
    """What one decoding step added to the caption of one picture.

    Attributes:
        index: position of the picture among those that were handed in, from 0.
        text: what is new. The pieces of a picture add up to the text of the device's caption.
        caption: with a picture's last piece the whole caption, after the fallback if there is one; `None` before.
    """

    index: int
    text: str
    caption: Caption | None = None
