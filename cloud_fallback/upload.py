"""The least that the cloud needs to see of a picture."""

import io
from typing import Final

from PIL import Image

from pocketlens.core.preprocess import PreprocessSpec, decode

__all__ = ["minimised_jpeg"]

# `decode` uses the gate of a spec (formats, sizes) and not its target size.
_GATE: Final = PreprocessSpec(height_px=1, width_px=1)
_QUALITY: Final = 85


def minimised_jpeg(picture: bytes, *, max_px: int) -> bytes:
    """Return `picture` as a JPEG whose longer side is at most `max_px` pixels, without any metadata.

    The pixels are decoded (upright, sRGB, opaque) and encoded anew, so EXIF with its position and
    time, XMP, ICC profile, comments, thumbnails, further frames and bytes after the end stay here.

    Raises:
        PictureError: the picture was refused by the gate of `pocketlens.core.preprocess`.
    """
    # Through the bare array: Pillow carries comments of an opened file over into the next one.
    image = Image.fromarray(decode(picture, _GATE))
    scale = min(1.0, max_px / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()
