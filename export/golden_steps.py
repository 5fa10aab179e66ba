"""What preprocessing makes of a golden case, step by step, by the functions of `pocketlens.core`. No torch."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from pocketlens.core.colour import to_srgb
from pocketlens.core.decode import decode
from pocketlens.core.errors import BundleSchemaError
from pocketlens.core.preprocess import PreprocessSpec, fit_pixels_exact, place
from pocketlens.core.resample import resample_exact
from pocketlens.export.golden_vectors import Case, Result, Step, array_sha256

__all__ = ["case_spec", "decoders", "load_samples", "results_of", "steps_of", "turned"]

_TURNED: Final = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""EXIF 2.32, table 6, as array operations: what turns the stored picture upright."""


def turned(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return stored `samples` (h, w[, C]) upright; `orientation` is 1..8."""
    return np.ascontiguousarray(_TURNED[orientation](samples))


def case_spec(case: Case, bundle_spec: PreprocessSpec) -> PreprocessSpec:
    """Return the spec that `case` is made with."""
    return bundle_spec if case.fit is None else case.fit.spec()


def load_samples(root: Path, case: Case) -> NDArray[Any]:
    """Return the stored samples of a decoded `case`: uint8 or uint16, (h, w) or (h, w, C).

    Raises:
        BundleSchemaError: the file is missing or of another form.
    """
    return _load(root / case.input)


def _load(path: Path) -> NDArray[Any]:
    try:
        samples: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _unfit(path, str(error)) from error
    if samples.dtype not in (np.uint8, np.uint16) or samples.ndim not in (2, 3) or 0 in samples.shape:
        raise _unfit(path, f"{samples.dtype} {samples.shape}")
    return samples


def _unfit(path: Path, found: str) -> BundleSchemaError:
    return BundleSchemaError(
        str(path),
        expected="decoded pixels, uint8 or uint16, (h, w) or (h, w, C)",
        found=found,
        remedy="Export the bundle again.",
    )


def steps_of(root: Path, case: Case, bundle_spec: PreprocessSpec) -> dict[Step, NDArray[Any]]:
    """Return every intermediate result of `case`, computed on this machine.

    A file starts at `pixels`, for its decoder is one piece; where the bundle carries the decoded
    pixels of a lossy file, the later steps are made from those.

    Raises:
        BundleSchemaError: an input is missing or malformed.
        PictureError: an input file was refused.
    """
    spec = case_spec(case, bundle_spec)
    steps: dict[Step, NDArray[Any]] = {}
    if not case.is_file:
        steps["upright"] = turned(load_samples(root, case), case.orientation)
        steps["pixels"] = _opaque(steps["upright"], spec)
    elif case.pixels is not None:
        steps["pixels"] = _load(root / case.pixels)
    else:
        steps["pixels"] = decode(root / case.input, spec)
    steps.update(_fitted(steps["pixels"], spec))
    return steps


def _opaque(samples: NDArray[Any], spec: PreprocessSpec) -> NDArray[np.uint8]:
    eight = samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8)
    return np.array(to_srgb(Image.fromarray(eight), spec.matte))  # mode by shape: L, LA, RGB, RGBA


def _fitted(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> dict[Step, NDArray[Any]]:
    to = place(pixels.shape[0], pixels.shape[1], spec)
    wide = resample_exact(pixels, height_px=pixels.shape[0], width_px=to.columns, filter_name=spec.filter)
    tall = resample_exact(wide, height_px=to.rows, width_px=to.columns, filter_name=spec.filter)
    return {"wide": wide, "tall": tall, "tensor": fit_pixels_exact(pixels, spec)}


def results_of(steps: dict[Step, NDArray[Any]]) -> dict[Step, Result]:
    """Return shape and hash of every step that changes something, and of the tensor."""
    results: dict[Step, Result] = {}
    last: Result | None = None
    for step, array in steps.items():
        result = Result(shape=array.shape, sha256=array_sha256(array))
        if result != last or step == "tensor":
            results[step] = result
        last = result
    return results


def decoders() -> dict[str, str]:
    """Return what decodes files on this machine, with versions."""
    found = {"pillow": PIL.__version__}
    turbo = features.version("libjpeg_turbo")
    found["libjpeg-turbo" if turbo else "libjpeg"] = turbo or features.version("jpg") or "none"
    found["littlecms2"] = features.version("littlecms2") or "none"
    return found
