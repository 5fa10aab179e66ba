"""A second port of preprocessing, built on Pillow and torch, with one bug planted at a time.

It shares no code with `pocketlens.export.confusions`: each bug is written as people write it.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from pocketlens.export.diagnosis import PortInput

__all__ = ["BUGS", "Ported", "ported"]

TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
TURNS |= {7: "TRANSVERSE", 8: "ROTATE_90"}
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Levels = NDArray[Any]


class Ported:
    """The right port; each bug replaces one method or one table."""

    def __init__(self) -> None:
        self.turns: dict[int, str] = dict(TURNS)
        self.resize: Callable[[Levels, int, int, str], Levels] = pillow_resize
        self.sixteen: Callable[[Levels], Levels] = lambda a: a >> 8
        self.over: Callable[[Image.Image, Image.Image, tuple[int, int, int]], Image.Image] = composite
        self.fit = ""
        self.offset: Callable[[int], int] = lambda rest: rest // 2
        self.near: Callable[[float], int] = lambda x: int(np.floor(x + 0.5))
        self.finish: Callable[[Levels], Levels] = lambda a: a
        self.honour_icc = True
        self.invert_cmyk = False
        self.draft = False

    def __call__(self, given: PortInput) -> Levels:
        spec = given.spec
        image, orientation = self.stored(given)
        turn = self.turns.get(orientation)
        if turn is not None:
            image = image.transpose(Image.Transpose[turn])
        return self.finish(self.place(np.asarray(self.opaque(image, spec.matte)), spec))

    def stored(self, given: PortInput) -> tuple[Image.Image, int]:
        if given.samples is not None:
            eight = given.samples if given.samples.dtype == np.uint8 else self.sixteen(given.samples).astype(np.uint8)
            return Image.fromarray(eight), given.case.orientation
        assert given.path is not None
        image = Image.open(io.BytesIO(given.path.read_bytes()))
        if self.draft:
            image.draft("RGB", (given.spec.width_px, given.spec.height_px))
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray(self.sixteen(np.asarray(image).astype(np.uint16)).astype(np.uint8))
        return image, image.getexif().get(0x0112, 1)

    def opaque(self, image: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
        profile = image.info.get("icc_profile")
        if profile and self.honour_icc:
            srgb = ImageCms.createProfile("sRGB")
            moved = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.ImageCmsProfile(srgb),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            assert moved is not None
            image = moved
        if image.mode == "CMYK" and self.invert_cmyk:
            image = Image.frombytes("CMYK", image.size, bytes(255 - np.asarray(image)))
        if image.mode in ("LA", "RGBA", "P"):
            whole = image.convert("RGBA")
            return self.over(whole.convert("RGB"), whole.getchannel("A"), matte)
        return image.convert("RGB")

    def place(self, pixels: Levels, spec: Any) -> Levels:
        (h, w), (rows, columns) = pixels.shape[:2], (spec.height_px, spec.width_px)
        fit = self.fit or spec.fit
        scale = {"crop": max(rows / h, columns / w), "pad": min(rows / h, columns / w), "squash": 0.0}[fit]
        size = (rows, columns)
        if scale:
            # The side that decides the scale is exact, the other one is rounded.
            by_height = scale == rows / h
            size = (rows, self.near(w * rows / h)) if by_height else (self.near(h * columns / w), columns)
        resized = self.resize(pixels, *size, spec.filter)
        if fit == "pad":
            canvas = np.full((rows, columns, 3), spec.pad_colour, np.uint8)
            rests = (rows - size[0], columns - size[1])
            top, left = (min(self.offset(rest), rest) for rest in rests)
            canvas[top : top + size[0], left : left + size[1]] = resized
            return canvas
        top, left = (min(max(self.offset(n - m), 0), n - m) for n, m in zip(size, (rows, columns), strict=True))
        return resized[top : top + rows, left : left + columns]


def composite(colour: Image.Image, alpha: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
    return Image.composite(colour, Image.new("RGB", colour.size, matte), alpha)


def pillow_resize(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((columns, image.height), FILTERS[name]).resize((columns, rows), FILTERS[name]))


def with_torch(*, antialias: bool, align: bool = False, rounded: bool = True) -> Callable[..., Levels]:
    """torch.nn.functional.interpolate; its bicubic has a = -0.75 unless it is antialiased."""

    def resize(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
        if pixels.shape[:2] == (rows, columns):
            return pixels
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].to(torch.float64)
        y = torch.nn.functional.interpolate(x, (rows, columns), mode=name, align_corners=align, antialias=antialias)
        y = y.round() if rounded else y.floor()
        return y.clamp(0, 255)[0].permute(1, 2, 0).to(torch.uint8).numpy()

    return resize


def keys(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def tent(x: float) -> float:
    return max(0.0, 1 - abs(x))


def by_hand(
    *,
    a: float = -0.5,
    shift: float = 0.0,
    repeat: bool = False,
    between: bool = True,
    swap: bool = False,
    cut: bool = False,
) -> Callable[..., Levels]:
    """An antialiased separable resize in plain loops and floats, as one writes it from a textbook."""

    def line(n: int, m: int, name: str) -> Levels:
        matrix, scale = np.zeros((m, n)), n / m
        stretch, radius = max(scale, 1.0), 2.0 if name == "bicubic" else 1.0
        for i in range(m):
            centre = (i + 0.5) * scale + shift
            lo, hi = int(np.floor(centre - radius * stretch)), int(np.ceil(centre + radius * stretch))
            for j in range(lo, hi + 1):
                x = (j + 0.5 - centre) / stretch
                value = keys(x, a) if name == "bicubic" else tent(x)
                if repeat or 0 <= j < n:
                    matrix[i, min(max(j, 0), n - 1)] += value
        return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))

    def to_levels(x: Levels) -> Levels:
        return np.clip(np.floor(x if cut else x + 0.5), 0, 255)

    def resize(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
        x = pixels.astype(np.float64)
        for axis in (0, 1) if swap else (1, 0):
            n, m = x.shape[axis], (rows, columns)[axis]
            if n != m:
                x = np.moveaxis(np.tensordot(line(n, m, name), x, (1, axis)), 0, axis)
                x = to_levels(x) if between else x
        return to_levels(x).astype(np.uint8)

    return resize


def nearest(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.NEAREST))


def swapped_filter(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
    return pillow_resize(pixels, rows, columns, "bilinear")


def lanczos(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS))


def linear_light(pixels: Levels, rows: int, columns: int, name: str) -> Levels:
    if pixels.shape[:2] == (rows, columns):
        return pixels
    light = (pixels / 255.0) ** 2.2
    planes = [
        Image.fromarray(light[..., c].astype(np.float32)).resize((columns, rows), FILTERS[name]) for c in range(3)
    ]
    mixed = np.clip(np.dstack([np.asarray(plane) for plane in planes]), 0, 1)
    return np.rint(255 * mixed ** (1 / 2.2)).astype(np.uint8)


def _set(**fields: Any) -> Callable[[Ported], None]:
    def plant(port: Ported) -> None:
        for name, value in fields.items():
            setattr(port, name, value)

    return plant


def _turn(changes: dict[int, str | None]) -> Callable[[Ported], None]:
    def plant(port: Ported) -> None:
        for value, name in changes.items():
            if name is None:
                port.turns.pop(value)
            else:
                port.turns[value] = name

    return plant


def _dropped(colour: Image.Image, alpha: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
    return colour


def _on_black(colour: Image.Image, alpha: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
    return composite(colour, alpha, (0, 0, 0))


def _on_white(colour: Image.Image, alpha: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
    return composite(colour, alpha, (255, 255, 255))


def _inverted_alpha(colour: Image.Image, alpha: Image.Image, matte: tuple[int, int, int]) -> Image.Image:
    return composite(colour, ImageOps.invert(alpha), matte)


def _warm(a: Levels) -> Levels:
    return np.clip(a.astype(np.int32) + np.array([9, 0, -9]), 0, 255).astype(np.uint8)


# Name: (the stage that must be named, words of the cause that must be named or "" where it is
# not on the list of known confusions, what is planted).
BUGS: dict[str, tuple[str, str, Callable[[Ported], None]]] = {
    "BGR": ("layout", "B, G, R", _set(finish=lambda a: a[..., ::-1])),
    "planes": ("layout", "planes", _set(finish=lambda a: a.transpose(2, 0, 1))),
    "bottom-up rows": ("layout", "bottom", _set(finish=lambda a: a[::-1])),
    "range 0..1": ("layout", "0..1", _set(finish=lambda a: a.astype(np.float32) / 255)),
    "range 0..1 as bytes": ("layout", "0..1", _set(finish=lambda a: (a / 255).astype(np.uint8))),
    "video range": ("layout", "16..235", _set(finish=lambda a: np.rint(16 + a * (219 / 255)).astype(np.uint8))),
    "normalised before the graph": (
        "normalise",
        "normalised already",
        _set(finish=lambda a: (a / 255.0 - 0.5).astype(np.float32) / 0.25),
    ),
    "a warm tint": ("layout", "", _set(finish=_warm)),
    "orientation skipped": ("orientation", "skipped", _set(turns={})),
    "6 and 8 swapped": ("orientation", "6 and 8", _turn({6: "ROTATE_90", 8: "ROTATE_270"})),
    "5 and 7 swapped": ("orientation", "5 and 7", _turn({5: "TRANSVERSE", 7: "TRANSPOSE"})),
    "2 and 4 swapped": ("orientation", "2 and 4", _turn({2: "FLIP_TOP_BOTTOM", 4: "FLIP_LEFT_RIGHT"})),
    "mirroring forgotten": (
        "orientation",
        "without their mirroring",
        _turn({2: None, 4: "ROTATE_180", 5: "ROTATE_270", 7: "ROTATE_90"}),
    ),
    "3 as 1": ("orientation", "3 is turned as 1", _turn({3: None})),
    "3 as 2": ("orientation", "3 is turned as 2", _turn({3: "FLIP_LEFT_RIGHT"})),
    "2 as 3": ("orientation", "2 is turned as 3", _turn({2: "ROTATE_180"})),
    "4 as 3": ("orientation", "4 is turned as 3", _turn({4: "ROTATE_180"})),
    "5 as 6": ("orientation", "5 is turned as 6", _turn({5: "ROTATE_270"})),
    "6 as 5": ("orientation", "6 is turned as 5", _turn({6: "TRANSPOSE"})),
    "7 as 8": ("orientation", "7 is turned as 8", _turn({7: "ROTATE_90"})),
    "8 as 7": ("orientation", "8 is turned as 7", _turn({8: "TRANSVERSE"})),
    "16 bits cut off": ("bits", "cut off", _set(sixteen=lambda a: np.minimum(a, 255))),
    "16 bits low byte": ("bits", "low byte", _set(sixteen=lambda a: a & 255)),
    "16 bits by 257": ("bits", "257", _set(sixteen=lambda a: np.floor(a / 257 + 0.5))),
    "alpha dropped": ("alpha", "dropped", _set(over=_dropped)),
    "alpha over black": ("alpha", "over black", _set(over=_on_black)),
    "alpha over white": ("alpha", "over white", _set(over=_on_white)),
    "alpha inverted": ("alpha", "", _set(over=_inverted_alpha)),
    "squash for crop": ("geometry", "squash", _set(fit="squash")),
    "pad for crop": ("geometry", "pad", _set(fit="pad")),
    "crop for pad": ("geometry", "crop", _set(fit="crop")),
    "window off by one": ("geometry", "off by", _set(offset=lambda rest: rest // 2 + 1)),
    "window from the corner": ("geometry", "", _set(offset=lambda rest: 0)),
    "size rounded down": ("geometry", "down", _set(near=lambda x: int(x + 1e-9))),
    "size rounded half to even": ("geometry", "half to even", _set(near=round)),
    "bilinear for bicubic": ("resize", "bilinear", _set(resize=swapped_filter)),
    "Lanczos": ("resize", "Lanczos", _set(resize=lanczos)),
    "nearest": ("resize", "nearest", _set(resize=nearest)),
    "no antialiasing (torch)": ("resize", "without antialiasing", _set(resize=with_torch(antialias=False))),
    "corners aligned (torch)": ("resize", "corners are aligned", _set(resize=with_torch(antialias=False, align=True))),
    "a = -0.75": ("resize", "a = -0.75", _set(resize=by_hand(a=-0.75))),
    "half a pixel off": ("resize", "half a pixel off", _set(resize=by_hand(shift=-0.5))),
    "edges repeated": ("resize", "edge pixels are repeated", _set(resize=by_hand(repeat=True))),
    "truncation": ("resize", "cut off, not rounded", _set(resize=by_hand(cut=True))),
    "vertical pass first": ("resize", "vertical pass", _set(resize=by_hand(swap=True))),
    "no clip between passes": ("resize", "not rounded to 8 bits", _set(resize=by_hand(between=False))),
    "linear light": ("resize", "linear light", _set(resize=linear_light)),
    "ICC ignored": ("profile", "ICC", _set(honour_icc=False)),
    "CMYK inverted": ("cmyk", "inverted", _set(invert_cmyk=True)),
    "draft decoding": ("decode", "reduced size", _set(draft=True)),
}


def ported(bug: str | None = None) -> Ported:
    """Return the port, right or with one bug planted."""
    port = Ported()
    if bug is not None:
        BUGS[bug][2](port)
    return port
