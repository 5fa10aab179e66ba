"""The ladder of golden cases, and `golden/vectors.json` written for a bundle."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.decode import decode
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.golden_files import encoded_files
from pocketlens.export.golden_sources import TARGET, raw_sources
from pocketlens.export.golden_steps import decoders, results_of, steps_of
from pocketlens.export.golden_vectors import (
    CASES_FOLDER,
    VECTORS_FILE,
    WRONG_NORMALISATION_FILE,
    Case,
    Fit,
    Stage,
    Tolerance,
    Vectors,
    array_sha256,
)
from pocketlens.export.normalisation import wrong_normalisations

__all__ = ["COSINE", "Embed", "case_ladder", "write_vectors"]

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""The eager image tower: levels float32 (N, H, W, 3), not clipped, to embeddings float32 (N, D)."""

COSINE: Final = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95}
"""Least cosine of an embedding that another device hands in. fp16: DESIGN section 7 measured 0.9999 and
better for CoreML, so 0.999 leaves room for a device's rounding. int8: a working limit, not a measurement."""

_FIT_NEEDS: Final[tuple[Stage, ...]] = ("layout", "geometry", "resize")
# Measured over 16 pictures, libjpeg-turbo 3.2.0 against FFmpeg's decoder (PyAV 18.1): without chroma
# subsampling no level was off by more than 3; with it, 98.2 % were within 16, for FFmpeg interpolates
# chroma in another way. OpenCV 5.0 and torchvision 0.29, both libjpeg-turbo, agreed in every bit.
_JPEG_444: Final = Tolerance(levels=4, share=0.99)
_JPEG_420: Final = Tolerance(levels=16, share=0.95)
# Another version or engine of colour management rounds differently; ignoring the profile is off by tens.
_PROFILE: Final = Tolerance(levels=3, share=0.99)
_FINGERPRINT_PICTURES: Final = 2


def _squash(height: int, width: int, filter_name: Any = "bicubic") -> Fit:
    return Fit(height_px=height, width_px=width, fit="squash", filter=filter_name)


def _raw(name: str, stage: Stage, source: str, fit: Fit, *needs: Stage, orientation: int = 1) -> Case:
    return Case(
        name=name,
        stage=stage,
        needs=needs,
        input=f"{CASES_FOLDER}/{source}.npy",
        fit=fit,
        orientation=orientation,
    )


def _decoded_cases() -> Iterator[Case]:
    height, width = TARGET
    target, turned = Fit(height_px=height, width_px=width), Fit(height_px=width, width_px=height)
    pad = Fit(height_px=height, width_px=width, fit="pad", pad_colour=(12, 140, 220))
    green = Fit(height_px=height, width_px=width, matte=(10, 200, 90))
    yield _raw("plain", "layout", "plain", target)
    for value in range(2, 9):
        fit = target if value < 5 else turned
        yield _raw(f"orientation-{value}", "orientation", "plain", fit, "layout", orientation=value)
    yield _raw("grey", "grey", "grey", target, "layout")
    yield _raw("grey16", "bits", "grey16", target, "layout", "grey")
    yield _raw("rgb16", "bits", "rgb16", target, "layout")
    yield _raw("rgba", "alpha", "rgba", target, "layout")
    yield _raw("rgba-on-green", "alpha", "rgba", green, "layout")
    yield _raw("grey-alpha", "alpha", "grey-alpha", target, "layout", "grey")
    # One side fits already: placing without resizing. The odd rest shows how halves are rounded.
    yield _raw("crop-rows", "geometry", "tall", target, "layout")
    yield _raw("crop-columns", "geometry", "long", target, "layout")
    yield _raw("pad-rows", "geometry", "low", pad, "layout")
    yield _raw("pad-columns", "geometry", "narrow", pad, "layout")
    for filter_name in ("bicubic", "bilinear"):
        for name, source in (
            ("narrower", "long"),
            ("wider", "narrow"),
            ("lower", "tall"),
            ("higher", "low"),
            ("smaller", "photo"),
            ("larger", "small"),
        ):
            yield _raw(f"{name}-{filter_name}", "resize", source, _squash(height, width, filter_name), "layout")
    yield _raw("much-smaller", "resize", "photo", _squash(7, 5), "layout")
    yield _raw("edges-smaller", "resize", "edges", _squash(height, width), "layout")
    yield _raw("edges-larger", "resize", "edges-small", _squash(height, width), "layout")
    yield _raw("column", "resize", "column", _squash(height, width), "layout")
    yield _raw("row", "resize", "row", _squash(height, width), "layout")
    yield _raw("crop", "geometry", "photo", target, "layout", "resize")
    yield _raw("crop-portrait", "geometry", "portrait", target, "layout", "resize")
    # near(45 * 32, 64) = 22.5 goes up: rounding to even or down gives 22 rows.
    yield _raw("crop-half", "geometry", "photo", Fit(height_px=20, width_px=32), "layout", "resize")
    yield _raw("pad", "geometry", "photo", pad, "layout", "resize")
    yield _raw("pad-portrait", "geometry", "portrait", pad, "layout", "resize")
    yield _raw("crop-orientation-6", "orientation", "photo", target, "layout", "geometry", "resize", orientation=6)


def _file(name: str, kind: str, stage: Stage, *needs: Stage, tolerance: Tolerance = Tolerance()) -> Case:  # noqa: B008
    path = f"{CASES_FOLDER}/{name}.{kind}"
    return Case(name=name, stage=stage, needs=(*_FIT_NEEDS, *needs), input=path, tolerance=tolerance)


def _file_cases() -> Iterator[Case]:
    yield _file("png-rgb", "png", "decode")
    yield _file("jpeg-444", "jpg", "decode", tolerance=_JPEG_444)
    yield _file("jpeg-420", "jpg", "decode", tolerance=_JPEG_420)
    yield _file("jpeg-grey", "jpg", "grey", "decode", tolerance=_JPEG_444)
    yield _file("jpeg-large", "jpg", "decode", tolerance=_JPEG_444)
    for value in range(2, 9):
        yield _file(f"jpeg-orientation-{value}", "jpg", "orientation", "decode", tolerance=_JPEG_444)
    yield _file("png-grey", "png", "grey", "decode")
    yield _file("png-grey16", "png", "bits", "decode", "grey")
    yield _file("png-rgb16", "png", "bits", "decode")
    yield _file("png-rgba", "png", "alpha", "decode")
    yield _file("png-palette-alpha", "png", "alpha", "decode")
    yield _file("png-profile", "png", "profile", "decode", tolerance=_PROFILE)
    yield _file("jpeg-cmyk", "jpg", "cmyk", "decode", tolerance=_JPEG_444)


def case_ladder(pictures: Sequence[str]) -> tuple[Case, ...]:
    """Return all cases in order, without results.

    Args:
        pictures: names of the golden pictures, in `golden/`.
    """
    cases = list(_decoded_cases())
    # A picture of the target's size is left as it is: the one case in which a port that knows no
    # spec but the bundle's neither places nor resizes.
    cases.append(Case(name="own-plain", stage="layout", input="golden/tensor-00.png"))
    needs: tuple[Stage, ...] = ("layout", "geometry")
    cases += [
        Case(name=f"picture-{Path(name).stem}", stage="resize", needs=needs, input=f"golden/{name}")
        for name in pictures
    ]
    return (*cases, *_file_cases())


def write_vectors(
    root: Path,
    spec: PreprocessSpec,
    *,
    pictures: Sequence[str],
    pixels: NDArray[np.uint8],
    seed: int = 0,
    embed: Embed | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Vectors:
    """Write `golden/vectors.json` and its inputs below `root`, a bundle in the making.

    Args:
        root: holds the golden pictures and `tensor-00.png` already.
        spec: the bundle's.
        pictures: names of the golden pictures, in `golden/`.
        pixels: their expected tensors, uint8 (N, H, W, 3).
        seed: of the scenes.
        embed: see `Embed`; without it, a wrong normalisation is not told from other weights.
        mean: of the levels over 255, which the image tower subtracts; with `embed`.
        std: likewise, which it divides by.
    """
    folder = root / CASES_FOLDER
    folder.mkdir(parents=True)
    raw = raw_sources(seed)
    for name, samples in raw.items():
        np.save(folder / f"{name}.npy", samples)
    for name, data in encoded_files(raw, seed=seed, height_px=spec.height_px, width_px=spec.width_px).items():
        (folder / name).write_bytes(data)
    cases = [_with_results(root, case, spec) for case in case_ladder(pictures)]
    names: tuple[str, ...] = ()
    if embed is not None:
        wrong = wrong_normalisations(pixels[:_FINGERPRINT_PICTURES], mean=mean, std=std)
        names = tuple(wrong)
        rows = np.stack([embed(levels) for levels in wrong.values()])
        np.save(root / WRONG_NORMALISATION_FILE, rows.astype(np.float16))
    vectors = Vectors(
        decoders=decoders(),
        cases=tuple(cases),
        tensors=tuple(array_sha256(tensor) for tensor in pixels),
        cosine=COSINE,
        wrong_normalisations=names,
    )
    (root / VECTORS_FILE).write_bytes(_lines(vectors))
    return vectors


def _with_results(root: Path, case: Case, spec: PreprocessSpec) -> Case:
    # The decoded pixels of small lossy files travel along. A turned JPEG is jpeg-444's business, a
    # large one too large: there, this machine's own decoder says what is expected.
    if case.is_file and not case.tolerance.exact and case.name in _STORED:
        path = f"{CASES_FOLDER}/{case.name}.pixels.npy"
        np.save(root / path, decode(root / case.input, spec))
        case = msgspec.structs.replace(case, pixels=path)
    return msgspec.structs.replace(case, results=results_of(steps_of(root, case, spec)))


_STORED: Final = frozenset({"jpeg-444", "jpeg-420", "jpeg-grey", "jpeg-cmyk", "png-profile"})


def _lines(vectors: Vectors) -> bytes:
    """Return JSON with one case a line: small, and readable where two versions are compared."""
    file = io.BytesIO()
    whole = msgspec.to_builtins(vectors)
    cases = whole.pop("cases")
    file.write(msgspec.json.encode(whole)[:-1] + b',\n"cases":[\n')
    file.write(b",\n".join(msgspec.json.encode(case) for case in cases))
    file.write(b"\n]}\n")
    return file.getvalue()
