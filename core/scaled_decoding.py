"""Large JPEG files decoded at a half, a quarter or an eighth of their size, by a rule that every device can follow.

A JPEG file holds blocks of 8 x 8 frequencies. A decoder can rebuild 4 x 4, 2 x 2 or 1 pixel from the
lowest of them, which is a fraction of the work and is already a picture without aliasing. A spec
with `jpeg_scaling` `dct` asks for that; with `none`, the default, every picture is decoded in full.

The rule: with (w, h) the size that the file states, before it is turned upright, and (H, W) the
target, the divisor is the largest d of 8, 4, 2 with `2 * min(w, h) >= 3 * d * max(H, W)`, or else 1.
So at least one and a half times the target is left to resize from. The picture then has
ceil(w / d) x ceil(h / d) pixels, and everything after (turning, colours, placing, resizing) sees
only those.

The pixels are those of libjpeg-turbo's accurate integer transform (`JDCT_ISLOW`) with `scale_num` 1
and `scale_denom` d, merged upsampling off. libjpeg 7 to 10 scale by another arithmetic.
"""

from typing import Final

from PIL import Image, JpegImagePlugin

from pocketlens.core.preprocess_spec import PreprocessSpec

__all__ = ["OVERSAMPLING", "draft", "jpeg_divisor"]

OVERSAMPLING: Final = (3, 2)
"""Numerator and denominator: times by which the shorter side of a scaled picture covers the target's longer side.

Measured in benchmarks/scaled_decoding.py, in the worst case that the rule allows: cosine to full decoding
0.9999 on average and 0.9995 at least, R@1 unchanged. At 1 the least was 0.9994, at 2 0.9998.
"""

_DIVISORS: Final = (8, 4, 2)


def jpeg_divisor(width: int, height: int, spec: PreprocessSpec) -> int:
    """Return 1, 2, 4 or 8: by what a JPEG picture of `width` x `height` pixels is divided when it is decoded."""
    if spec.jpeg_scaling == "none":
        return 1
    times, parts = OVERSAMPLING
    least = times * max(spec.height_px, spec.width_px)
    return next((d for d in _DIVISORS if parts * min(width, height) >= d * least), 1)


def draft(image: Image.Image, spec: PreprocessSpec) -> None:
    """Make `image`, opened and not yet decoded, decode at the size that `spec` asks for.

    Pictures other than JPEG (and the first one of an MPO file) are left alone.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return
    divisor = jpeg_divisor(*image.size, spec)
    if divisor > 1:
        # Pillow takes the largest divisor whose result covers the size that it is asked for.
        image.draft(None, (image.width // divisor, image.height // divisor))
