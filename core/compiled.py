"""The device kit's preprocessing, compiled: the same C that a phone runs, where this installation has it.

The extension module is built with the package if a C compiler is at hand (`hatch_build.py`). Without it everything
works as it does with it, and the pixels are the same; Pillow's resampler takes about three times as long.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.preprocess_spec import PreprocessSpec

try:
    from pocketlens.core import _preprocess
except ImportError:  # a pure wheel, or no compiler where the package was built
    _preprocess = None  # type: ignore[assignment]

__all__ = ["COMPILED", "fit_compiled"]

COMPILED: Final = _preprocess is not None
"""Whether this installation has the extension module."""

_FITS: Final = ("crop", "squash", "pad")
_FILTERS: Final = ("bicubic", "bilinear")
# Of the C code, for the picture's pixels and its aspect ratio; the spec's own limits end there too.
_MAX_PIXELS, _MAX_ASPECT = 178_956_970, 1_048_576


def fit_compiled(source: Image.Image | NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8] | None:
    """Return `source` placed and resized to uint8 (height_px, width_px, 3), C-contiguous.

    Pillow's memory is read where it lies (its Arrow interface), without the interpreter's lock.

    Args:
        source: an image of mode RGB, or uint8 (H, W, 3).
        spec: the bundle's.

    Returns:
        `None` where that cannot be: there is no extension module, Pillow holds the image in several blocks (beyond
        16 MiB, 4 megapixels), or an array that no gate has seen is larger or longer than the C code takes.
    """
    height, width = source.shape[:2] if isinstance(source, np.ndarray) else (source.height, source.width)
    shorter, longer = sorted((height, width))
    if _preprocess is None or height * width > _MAX_PIXELS or longer > _MAX_ASPECT * shorter:
        return None
    try:
        pixels = np.ascontiguousarray(source) if isinstance(source, np.ndarray) else source.__arrow_c_array__()[1]
    except ValueError:  # several blocks
        return None
    out = np.empty((spec.height_px, spec.width_px, 3), np.uint8)
    way, kernel = _FITS.index(spec.fit), _FILTERS.index(spec.filter)
    _preprocess.fit(pixels, height, width, spec.height_px, spec.width_px, way, kernel, tuple(spec.pad_colour), out)
    return out
