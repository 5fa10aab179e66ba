"""Encoded pictures to upright sRGB pixels, behind a gate that refuses before it decodes.

The gate, in this order, each with its kind of `PictureError`:

1. the source can be read: `missing`, `not_a_file`, `unreadable`, `empty`, `too_large`
2. its header belongs to a picture format: `unknown_type`; one that the spec lists and this
   machine can decode: `type_not_allowed`
3. its stated size: `bad_shape` for no area or too long a strip, `too_many_pixels` for a bomb, in
   pixels or in frames
4. only then the pixels are decoded: `corrupt`, or `too_many_pixels` when memory runs out

Steps 2 and 3 are `pocketlens.core.picture_gate`. A fifth step belongs to a process of its own, see
`pocketlens.runtime.picture_worker`: `too_slow` and `crashed_decoder`.

No setting of the surrounding program weakens it: Pillow's `LOAD_TRUNCATED_IMAGES` counts as off,
and Pillow's warnings are not shown, for what they warn of is either refused or harmless.

Of a large picture no more than two copies are held at a time, and mostly one: 4 bytes a pixel each.
"""

import os
import threading
import warnings
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pocketlens.core.colour import to_srgb
from pocketlens.core.errors import PictureError
from pocketlens.core.picture_gate import BROKEN, check_size, open_picture, refusal
from pocketlens.core.picture_parts import MAX_DIRECTORY_ENTRIES, directory_entries
from pocketlens.core.picture_source import name_of, read_bytes
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.core.scaled_decoding import draft

__all__ = ["Picture", "check_pixels", "decode", "decode_image", "upright_image"]

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""A picture: a path, an encoded file as bytes or as a binary file object, or decoded pixels.

Paths and encoded files pass the whole gate. A `PIL.Image.Image` is taken at the frame it stands
on, its EXIF orientation and ICC profile still apply, and only its size is checked. An array is
uint8 (H, W, 3), taken as upright sRGB.
"""

_ORIENTATION_TAG: Final = 0x0112
# EXIF 2.32, table 6: what turns the stored picture upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _StrictPillow:
    """While any thread is inside: Pillow does not warn, and truncated files are errors.

    Both settings belong to the process, so the first thread in makes them and the last one out
    restores them; a plain `catch_warnings` in each thread would restore in the wrong order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._tolerant = False

    def __enter__(self) -> Self:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._tolerant
                self._warnings.__exit__(None, None, None)


_STRICT_PILLOW: Final = _StrictPillow()


def decode(source: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return the picture upright, in sRGB, opaque: uint8 (H, W, 3), C-contiguous.

    Upright: the EXIF orientation (1..8; where there is none, the one in XMP) is applied; a broken
    EXIF block or another number counts as 1. First frame of animations, first picture of
    MPO and multi-page TIFF files. Colours: see `pocketlens.core.colour`. Where the spec says so,
    large JPEG files come out smaller: see `pocketlens.core.scaled_decoding`.

    Args:
        source: see `Picture`. An array is returned as it is when it is contiguous.
        spec: gives the formats and limits of the gate, and the matte under transparency.

    Raises:
        PictureError: the picture was refused; see the module's docstring for the kinds.
    """
    if isinstance(source, np.ndarray):
        check_pixels(source)
        check_size(source.shape[1], source.shape[0], "the given array", spec)
        return np.ascontiguousarray(source)
    return np.array(decode_image(source, spec))


def decode_image(source: Picture, spec: PreprocessSpec) -> Image.Image:
    """Return what `decode` returns as a new PIL image of mode RGB without metadata: two copies fewer on the way."""
    image = upright_image(source, spec)
    return image.copy() if image is source else image


def upright_image(source: Picture, spec: PreprocessSpec) -> Image.Image:
    """Return what `decode_image` returns, to be read only: a PIL image that is right as it is comes back itself."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(decode(source, spec))
    name = name_of(source)
    with _STRICT_PILLOW:
        if isinstance(source, Image.Image):
            check_size(*source.size, name, spec)
            return _decode_pixels(source, None, name, spec)
        data = read_bytes(source, max_bytes=spec.max_bytes)
        sample_bits = data[24] if len(data) > 24 and data.startswith(b"\x89PNG") else None  # in IHDR, the first chunk
        image = open_picture(data, name, spec)
        del data  # the picture holds it as long as it needs it
        with image:
            upright = _decode_pixels(image, sample_bits, name, spec, owned=True)
        upright.info = {}
        return upright


def check_pixels(pixels: NDArray[Any]) -> None:
    """Raise `PictureError` unless `pixels` is uint8 (H, W, 3) with H, W >= 1."""
    if pixels.dtype != np.uint8:
        raise PictureError(
            "the given array",
            kind="unknown_type",
            expected="dtype uint8, RGB levels 0..255",
            found=f"dtype {pixels.dtype}",
            remedy="Scale to 0..255 and convert with .astype(numpy.uint8).",
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise PictureError(
            "the given array",
            kind="bad_shape",
            expected="shape (H, W, 3) with H and W at least 1",
            found=f"shape {pixels.shape}",
            remedy="Move the channels last, and turn grey pictures into three equal channels.",
        )


def _decode_pixels(
    image: Image.Image, sample_bits: int | None, name: str, spec: PreprocessSpec, *, owned: bool = False
) -> Image.Image:
    """Return `image` decoded, upright and in sRGB. One that is `owned` may be used up on the way."""
    subject = f"{image.format or 'PIL'} pixels"
    try:
        bits = sample_bits or _tiff_sample_bits(image)
        if owned:
            draft(image, spec)
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        if owned and turn is not None:
            image.close()  # or two copies would be held while the colours make a third
        return to_srgb(upright, spec.matte, sample_bits=bits)
    except BROKEN as error:
        raise refusal(error, subject, name, spec) from error


def _tiff_sample_bits(image: Image.Image) -> int | None:
    """Return the bits of one stored sample where a TIFF file says so (TIFF 6.0, BitsPerSample), else `None`."""
    bits = getattr(image, "tag_v2", {}).get(258)
    return bits[0] if isinstance(bits, tuple) and bits and isinstance(bits[0], int) else None


def _orientation(image: Image.Image) -> int:
    # After load(): TIFF files are turned by Pillow there, and lose the tag. HEIF files are turned by
    # libheif, and pillow-heif sets the tag to 1.
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and directory_entries(exif.removeprefix(b"Exif\0\0")) > MAX_DIRECTORY_ENTRIES:
        return 1  # broken, and a second of work for Pillow
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except BROKEN:
        return 1
    return value if isinstance(value, int) else 1
