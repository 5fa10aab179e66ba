"""Ways in which ports of preprocessing go wrong, carried out, so that a wrong tensor can be recognised.

A `Variation` says what is done otherwise; `vary` does it. The diagnosis never depends on this list
to *catch* a difference or to name its stage: cases do that. The list names the cause.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.confused_resize import Resize, resize
from pocketlens.export.golden_steps import turned
from pocketlens.export.golden_vectors import Stage

__all__ = ["SUSPECTS", "Picture", "Suspect", "Variation", "vary"]

_MIRRORED: Final = {2: 3, 3: 2, 4: 1, 5: 6, 6: 5, 7: 8, 8: 7}


class Picture(msgspec.Struct, frozen=True):
    """An input as far as a variation needs it.

    Attributes:
        samples: stored samples (h, w[, C]), uint8 or uint16, colours as stored.
        orientation: EXIF.
        pixels: the right opaque sRGB pixels, upright, uint8 (h, w, 3).
        variants: other decoded pixels of a file, by what was done otherwise (`no profile` ...).
    """

    samples: NDArray[Any] | None
    orientation: int
    pixels: NDArray[np.uint8]
    variants: Mapping[str, NDArray[np.uint8]] = {}


class Variation(msgspec.Struct, frozen=True, kw_only=True):
    """What is done otherwise than the spec says; by default nothing.

    Attributes:
        turns: by EXIF orientation, the one that is applied in its place.
        bits: how 16-bit samples become 8: their high byte, cut off at 255, their low byte, stretched.
        alpha: what becomes of it: laid over the matte, dropped, over black, over white, or multiplied
            into the colours with nothing added.
        decoded: a key of `Picture.variants`.
        fit: another rule than the spec's.
        near: how the size after resizing is rounded.
        shift: of the window's top row and left column (of the picture's place, when padding).
        pad_colour: in place of the spec's.
        resize: how.
        layout: what is done with the finished tensor.
    """

    turns: Mapping[int, int] = {}
    bits: Literal["high", "cut", "low", "stretch", "scale"] = "high"
    alpha: Literal["matte", "drop", "black", "white"] = "matte"
    decoded: str = ""
    fit: Literal["", "crop", "squash", "pad"] = ""
    near: Literal["near", "floor", "ceil", "even"] = "near"
    shift: tuple[int, int] = (0, 0)
    pad_colour: tuple[int, int, int] | None = None
    resize: Resize = Resize()
    layout: Literal["rgb", "bgr", "grb", "planes", "mirror", "flip", "transpose", "unit", "signed", "limited"] = "rgb"


class Suspect(NamedTuple):
    """A confusion that has been seen in ports: its stage, its cause in words, and how to put it right."""

    stage: Stage
    cause: str
    remedy: str
    variation: Variation


def vary(picture: Picture, spec: PreprocessSpec, variation: Variation) -> NDArray[np.uint8] | None:
    """Return the tensor uint8 (H, W, 3) of `picture` under `variation`; `None` where it does not apply."""
    pixels = _pixels(picture, spec, variation)
    if pixels is None:
        return None
    return _laid_out(_placed(pixels, spec, variation), variation.layout)


def _pixels(picture: Picture, spec: PreprocessSpec, variation: Variation) -> NDArray[np.uint8] | None:
    if variation.decoded:
        return picture.variants.get(variation.decoded)
    turn = variation.turns.get(picture.orientation, picture.orientation)
    if picture.samples is None:
        if turn == picture.orientation:
            return picture.pixels
        return turned(_unturned(picture.pixels, picture.orientation), turn)
    samples = _eight_bits(turned(picture.samples, turn), variation.bits)
    if samples.ndim == 2:
        return samples[..., None].repeat(3, axis=2)
    channels = samples.shape[2]
    colour = samples[..., :1].repeat(3, axis=2) if channels < 3 else samples[..., :3]
    if channels in (1, 3) or variation.alpha == "drop":
        return colour
    matte = np.array({"matte": spec.matte, "black": (0, 0, 0), "white": (255, 255, 255)}[variation.alpha])
    alpha = samples[..., -1:].astype(np.int64)
    mixed: NDArray[np.uint8] = ((2 * (alpha * colour + (255 - alpha) * matte) + 255) // 510).astype(np.uint8)
    return mixed


def _unturned(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    # A quarter turn is undone by the other one; every other turn undoes itself.
    return turned(upright, {6: 8, 8: 6}.get(orientation, orientation))


def _eight_bits(samples: NDArray[Any], how: str) -> NDArray[np.uint8]:
    if samples.dtype == np.uint8:
        return samples
    wide = samples.astype(np.float64)
    ways: dict[str, Callable[[], NDArray[Any]]] = {
        "high": lambda: samples >> 8,
        "cut": lambda: np.minimum(samples, 255),
        "low": lambda: samples & 255,
        "scale": lambda: np.floor(wide / 257.0 + 0.5),
        "stretch": lambda: np.rint((wide - wide.min()) / max(float(np.ptp(wide)), 1.0) * 255),
    }
    levels: NDArray[np.uint8] = ways[how]().astype(np.uint8)
    return levels


def _placed(pixels: NDArray[np.uint8], spec: PreprocessSpec, variation: Variation) -> NDArray[np.uint8]:
    height, width, fit = spec.height_px, spec.width_px, variation.fit or spec.fit
    h, w = pixels.shape[:2]
    rows, columns = height, width
    if fit != "squash":
        if (width * h >= height * w) == (fit == "crop"):
            rows = max(_rounded(h * width, w, variation.near), 1)
        else:
            columns = max(_rounded(w * height, h, variation.near), 1)
    resized = resize(pixels, rows, columns, spec.filter, variation.resize)
    top = _start(rows - height, variation.shift[0], pad=fit == "pad")
    left = _start(columns - width, variation.shift[1], pad=fit == "pad")
    y, x = np.arange(height) + top, np.arange(width) + left
    if fit != "pad":  # a window that leaves the picture repeats its edge
        return resized[np.clip(y, 0, rows - 1)][:, np.clip(x, 0, columns - 1)]
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = spec.pad_colour if variation.pad_colour is None else variation.pad_colour
    y_inside, x_inside = (y >= 0) & (y < rows), (x >= 0) & (x < columns)
    canvas[np.ix_(y_inside, x_inside)] = resized[np.ix_(y[y_inside], x[x_inside])]
    return canvas


def _start(rest: int, shift: int, *, pad: bool) -> int:
    """Return the first row or column of the window; a shift never leaves the picture, or the canvas."""
    middle = -(-rest // 2) if pad else rest // 2
    return min(max(middle + (-shift if pad else shift), min(rest, 0)), max(rest, 0))


def _rounded(numerator: int, denominator: int, how: str) -> int:
    if how == "floor":
        return numerator // denominator
    if how == "ceil":
        return -(-numerator // denominator)
    if how == "even":
        return round(numerator / denominator)
    return (2 * numerator + denominator) // (2 * denominator)


def _laid_out(tensor: NDArray[np.uint8], layout: str) -> NDArray[np.uint8] | None:
    if layout == "transpose" and tensor.shape[0] != tensor.shape[1]:
        return None
    ways = {
        "rgb": lambda t: t,
        "bgr": lambda t: t[..., ::-1],
        "grb": lambda t: t[..., [1, 0, 2]],
        "planes": lambda t: t.transpose(2, 0, 1).reshape(t.shape),
        "mirror": lambda t: t[:, ::-1],
        "flip": lambda t: t[::-1],
        "transpose": lambda t: t.swapaxes(0, 1),
        "unit": lambda t: t // 255,
        "signed": lambda t: t ^ 0x80,
        "limited": lambda t: np.rint(16 + t * (219 / 255)).astype(np.uint8),
    }
    return np.ascontiguousarray(ways[layout](tensor))


def _suspects() -> tuple[Suspect, ...]:
    layouts: dict[str, tuple[str, str]] = {
        "bgr": ("the channels are in the order B, G, R", "Swap the first and the third channel."),
        "grb": ("the channels are in the order G, R, B", "Hand over R, G, B."),
        "planes": ("planes (3, H, W) where pixels (H, W, 3) are expected", "Interleave the channels; axis 2 is RGB."),
        "mirror": ("the tensor is mirrored left to right", "Write each row from the left."),
        "flip": ("rows from the bottom", "Write rows from the top, as picture files have them."),
        "transpose": ("rows and columns are swapped", "Axis 0 is the row, axis 1 the column."),
        "unit": ("levels in 0..1", "Hand over levels 0..255 as uint8; the graph scales them."),
        "signed": ("levels shifted by 128", "Hand over unsigned levels 0..255."),
        "limited": ("levels in the video range 16..235", "Ask the decoder for full-range RGB."),
    }
    found = [Suspect("layout", cause, fix, Variation(layout=key)) for key, (cause, fix) in layouts.items()]  # type: ignore[arg-type]
    found += _orientations()
    found += [
        Suspect("bits", cause, "Take the high byte, v >> 8.", Variation(bits=how))  # type: ignore[arg-type]
        for how, cause in (
            ("cut", "16-bit samples are cut off at 255"),
            ("low", "the low byte of 16-bit samples is taken"),
            ("scale", "16-bit samples are divided by 257 and rounded"),
            ("stretch", "16-bit samples are stretched to their own range"),
        )
    ]
    found += [
        Suspect("alpha", cause, "Lay the colours over the spec's matte.", Variation(alpha=how))  # type: ignore[arg-type]
        for how, cause in (
            ("drop", "alpha is dropped"),
            ("black", "alpha is laid over black"),
            ("white", "alpha is laid over white, whatever the matte"),
        )
    ]
    found += _geometry()
    found += _resizing()
    found += [
        Suspect("profile", "the ICC profile is ignored", "Convert to sRGB.", Variation(decoded="no profile")),
        Suspect("cmyk", "CMYK inks are taken inverted", "Undo Adobe's inversion once.", Variation(decoded="inverted")),
        Suspect(
            "decode",
            "the JPEG is decoded at a reduced size (draft, thumbnail, sample size)",
            "Decode at full size and resize by the spec.",
            Variation(decoded="draft"),
        ),
    ]
    return tuple(found)


def _orientations() -> list[Suspect]:
    stage: Stage = "orientation"
    everything = dict.fromkeys(range(2, 9), 1)
    suspects = [
        Suspect(stage, "the orientation is skipped", "Apply the EXIF orientation.", Variation(turns=everything)),
        Suspect(
            stage,
            "orientations 6 and 8 are swapped: quarter turns go the wrong way",
            "6 is a quarter turn clockwise, 8 counter-clockwise.",
            Variation(turns={6: 8, 8: 6}),
        ),
        Suspect(stage, "5 and 7 are swapped", "5 transposes, 7 transverses.", Variation(turns={5: 7, 7: 5})),
        Suspect(stage, "2 and 4 are swapped", "2 mirrors left-right, 4 top-bottom.", Variation(turns={2: 4, 4: 2})),
        Suspect(
            stage,
            "mirrored orientations are applied without their mirroring",
            "Apply the mirroring of 2, 4, 5 and 7 as well.",
            Variation(turns={2: 1, 4: 3, 5: 6, 7: 8}),
        ),
        Suspect(stage, "turns are mirrored", "3, 6 and 8 turn without mirroring.", Variation(turns=_MIRRORED)),
        Suspect(
            stage,
            "quarter turns are applied twice",
            "Apply each orientation once.",
            Variation(turns={6: 3, 8: 3, 3: 1}),
        ),
    ]
    for value in range(2, 9):
        for wrong in range(1, 9):
            if wrong != value:
                cause = f"orientation {value} is turned as {wrong}"
                suspects.append(Suspect(stage, cause, "See the table in the spec.", Variation(turns={value: wrong})))
    return suspects


def _geometry() -> list[Suspect]:
    stage: Stage = "geometry"
    suspects = [
        Suspect(stage, f"the picture is fitted by `{fit}`", "Follow the spec's `fit`.", Variation(fit=fit))
        for fit in ("squash", "pad", "crop")
    ]
    for dy, dx in ((1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1)):
        cause = f"the window is off by ({dy:+d}, {dx:+d}) rows and columns"
        suspects.append(Suspect(stage, cause, "It starts at (rows - H) // 2.", Variation(shift=(dy, dx))))
    for how, words in (("floor", "down"), ("ceil", "up"), ("even", "half to even")):
        cause = f"the size after resizing is rounded {words}"
        suspects.append(Suspect(stage, cause, "near(a, b) = (2a + b) // (2b).", Variation(near=how)))  # type: ignore[arg-type]
    for name, colour in (("black", (0, 0, 0)), ("white", (255, 255, 255)), ("grey", (127, 127, 127))):
        cause = f"the padding is {name}"
        suspects.append(Suspect(stage, cause, "Pad with the spec's pad_colour.", Variation(pad_colour=colour)))
    return suspects


def _resizing() -> list[Suspect]:
    ways: list[tuple[str, str, Resize]] = [
        ("no antialiasing", "Widen the kernel by the scale when shrinking.", Resize(antialias=False)),
        (
            "the nearest pixel is taken",
            "Use the spec's filter, antialiased.",
            Resize(kernel="nearest", antialias=False),
        ),
        ("the filter is bilinear", "Use the spec's filter.", Resize(kernel="bilinear")),
        ("the filter is bicubic", "Use the spec's filter.", Resize(kernel="bicubic")),
        ("the filter is bicubic with a = -0.75", "Keys' a is -0.5.", Resize(kernel="bicubic75")),
        (
            "the filter is bicubic with a = -0.75, without antialiasing",
            "Keys' a is -0.5, and the kernel widens when shrinking.",
            Resize(kernel="bicubic75", antialias=False),
        ),
        (
            "the filter is bilinear, without antialiasing",
            "Use the spec's filter, and widen the kernel when shrinking.",
            Resize(kernel="bilinear", antialias=False),
        ),
        ("the filter is Lanczos", "Use the spec's filter.", Resize(kernel="lanczos")),
        ("the filter is a box (area average)", "Use the spec's filter.", Resize(kernel="box")),
        ("samples are half a pixel off", "Output i is centred at (i + 0.5) * scale.", Resize(centre="top-left")),
        ("samples are half a pixel off", "Output i is centred at (i + 0.5) * scale.", Resize(centre="left")),
        ("samples are half a pixel off", "Output i is centred at (i + 0.5) * scale.", Resize(centre="right")),
        (
            "corners are aligned, without antialiasing",
            "Output i is centred at (i + 0.5) * scale, and the kernel widens when shrinking.",
            Resize(kernel="bicubic75", antialias=False, centre="corners"),
        ),
        ("corners are aligned", "Output i is centred at (i + 0.5) * scale.", Resize(centre="corners")),
        (
            "edge pixels are repeated beyond the border",
            "Divide by the sum of the weights inside.",
            Resize(border="repeat"),
        ),
        ("black lies beyond the border", "Divide by the sum of the weights inside.", Resize(border="zero")),
        ("levels are cut off, not rounded", "Add 2**21 before the shift.", Resize(rounding="down")),
        ("the vertical pass comes first", "The horizontal pass comes first.", Resize(order="vertical")),
        (
            "the passes are not rounded to 8 bits in between",
            "Clip and round to uint8 after the horizontal pass.",
            Resize(between="float"),
        ),
        ("levels are blended in linear light", "Blend the sRGB levels as they are.", Resize(light="linear")),
    ]
    return [Suspect("resize", cause, remedy, Variation(resize=how)) for cause, remedy, how in ways]


SUSPECTS: Final = _suspects()
"""All that is recognised."""
