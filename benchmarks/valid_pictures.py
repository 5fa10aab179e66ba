"""Generates 2,000 sound pictures as cameras, phones and programs write them, and counts those that are refused.

Run: python -m benchmarks.valid_pictures

Sizes, modes, formats, subsampling, progression, profiles, orientations, thumbnails, comments and trailing
bytes are drawn by a seed. Every 100th picture has 48 megapixels, as a phone's JPEG.
"""

import argparse
import io
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from benchmarks.mutations import memory_peak_bytes, photograph
from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import PictureWorker, WorkerLimits

SPEC = PreprocessSpec(
    height_px=96, width_px=96, formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
)
KINDS = ("JPEG", "JPEG", "JPEG", "JPEG", "PNG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "MPO")
_MODES = {
    "JPEG": ("RGB", "RGB", "RGB", "L", "CMYK"),
    "MPO": ("RGB",),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "F", "LAB"),
    "AVIF": ("RGB", "RGBA", "L"),
    "HEIF": ("RGB", "RGBA", "L"),
}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_LARGE: dict[int, Image.Image] = {}


def _large(rng: np.random.Generator) -> Image.Image:
    """Return one of two pictures of 8,064 x 6,048 pixels, made once."""
    which = int(rng.integers(0, 2))
    if which not in _LARGE:
        _LARGE[which] = photograph(rng, 756, 1008).resize((8064, 6048), Image.Resampling.BICUBIC)
    return _LARGE[which].copy()


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(image, *profiles, outputMode="LAB") or image
    if mode in {"RGBA", "LA"}:
        image = image.convert(mode)
        image.putalpha(image.getchannel(0))
        return image
    return image.quantize(64) if mode == "P" else image.convert(mode)


def _options(kind: str, mode: str, rng: np.random.Generator) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind not in {"GIF", "BMP"} and rng.random() < 0.6:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = int(rng.integers(1, 9)), "Maker of cameras"
        if kind in {"JPEG", "MPO"}:  # a thumbnail in its own directory, as in every camera's file
            exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
        options["exif"] = exif.tobytes() if kind == "HEIF" else exif
    if kind not in {"GIF", "BMP"} and mode in {"RGB", "RGBA"} and rng.random() < 0.4:
        options["icc_profile"] = _SRGB
    return options | _encoding(kind, mode, rng)


def _encoding(kind: str, mode: str, rng: np.random.Generator) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind in {"JPEG", "MPO"}:
        options |= {"quality": int(rng.integers(30, 98)), "optimize": bool(rng.integers(0, 2))}
        options |= {"progressive": bool(rng.random() < 0.3)}
        if mode == "RGB":
            options["subsampling"] = int(rng.integers(0, 3))
        if kind == "JPEG" and rng.random() < 0.3:
            options["comment"] = b"made for measuring"
    elif kind == "PNG":
        options |= {"compress_level": int(rng.integers(0, 7))}
        if rng.random() < 0.3:
            info = PngImagePlugin.PngInfo()
            info.add_text("Software", "x" * int(rng.integers(1, 5000)), zip=bool(rng.integers(0, 2)))
            options["pnginfo"] = info
    elif kind == "TIFF" and mode in {"RGB", "L", "RGBA", "I;16", "1"}:
        options["compression"] = str(rng.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
        if options["compression"] == "None":
            del options["compression"]
    elif kind == "WEBP":
        options |= {"lossless": bool(rng.integers(0, 2)), "method": 0}
    elif kind == "AVIF":
        options |= {"speed": 10, "quality": int(rng.integers(30, 95))}
    elif kind == "HEIF":
        options |= {"quality": int(rng.integers(30, 95))}
    return options


def picture(seed: int, number: int) -> tuple[str, bytes]:
    """Return what the picture (seed, number) is called and its file."""
    rng = np.random.default_rng([seed, number])
    if number % 100 == 99:
        large = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice([1, 3, 6, 8]))
        progressive = bool(rng.random() < 0.25)
        _large(rng).save(large, "JPEG", quality=int(rng.integers(70, 93)), exif=exif, progressive=progressive)
        return "48 MP JPEG", large.getvalue()
    kind = KINDS[number % len(KINDS)]
    mode = str(rng.choice(_MODES[kind]))
    width, height = (round(float(side)) for side in np.exp(rng.uniform(np.log(16), np.log(600), 2)))
    if max(width, height) > 60 * min(width, height):
        width = height
    image = _as_mode(photograph(rng, height, width), mode)
    file, options = io.BytesIO(), _options(kind, mode, rng)
    if kind == "HEIF":
        from pillow_heif import from_pillow

        from_pillow(image).save(file, **options)
    else:
        if kind == "MPO" or (kind in {"GIF", "WEBP", "TIFF", "PNG"} and mode in {"RGB", "P"} and rng.random() < 0.2):
            options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
        image.save(file, kind, **options)
    # Phones append films and other data; every reader stops at the end of the picture.
    after = rng.bytes(int(rng.integers(1, 3000))) if kind in {"JPEG", "PNG", "GIF"} and rng.random() < 0.2 else b""
    return f"{kind} {mode}", file.getvalue() + after


def main() -> None:
    """Print what was refused; exit code 1 for more than 0.1 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wall-s", type=float, default=2.0, help="more on a machine that has other work")
    parser.add_argument("--large-only", action="store_true", help="only those of 48 megapixels")
    options = parser.parse_args()
    kinds, refused, times = Counter[str](), list[str](), list[tuple[float, str]]()
    with PictureWorker(WorkerLimits(wall_s=options.wall_s)) as worker:
        peak = 0
        for number in range(99, options.count, 100) if options.large_only else range(options.count):
            name, data = picture(options.seed, number)
            if number % 100 == 0:
                print(f"{number:,} done, {len(refused)} refused", file=sys.stderr, flush=True)
            kinds[name.split()[0]] += 1
            worker.start()
            began = time.perf_counter()
            try:
                worker.prepare(data, SPEC)
            except PictureError as error:
                refused.append(f"{number}: {name}: {error.kind}: {error.found}")
                print(refused[-1], flush=True)
            times.append((1000 * (time.perf_counter() - began), f"{number}: {name}"))
            peak = max(peak, memory_peak_bytes(worker.pid))
    print(f"{len(times):,} sound pictures: {dict(kinds)}")
    print(f"refused: {len(refused)} = {100 * len(refused) / len(times):.3f} %")
    print("slowest: " + "; ".join(f"{took:.0f} ms {name}" for took, name in sorted(times, reverse=True)[:3]))
    print(f"worker: {worker.starts} start(s), {peak / 10**6:.0f} MB at most")
    sys.exit(1 if len(refused) > len(times) / 1000 else 0)


if __name__ == "__main__":
    main()
