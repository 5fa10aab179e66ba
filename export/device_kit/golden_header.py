"""`pocketlens_golden.h`: pictures and texts with what pocketlens makes of them, for the self-test in C."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer

__all__ = ["PIXEL_FORMATS", "GoldenPicture", "golden_header", "golden_texts", "noise"]

PIXEL_FORMATS: Final = ("RGB", "RGBA", "RGBa", "RGBX")
"""Pillow's modes in the order of `pl_format`."""

_ORIENTATION_TAG: Final = 0x0112

# One text for each step at which a port goes wrong.
_TEXTS: Final = (
    "",
    " ",
    "a cat on a sofa",
    "A Cat, ON a SOFA!",
    "it's the dogs' ball; they'll say we've 12 of 'em",
    "  two  spaces\tand\na line \u00a0 \u2003 end  ",
    "caf\u00e9 cafe\u0301 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u0958",
    "\u0130stanbul \u03a3\u0391\u03a3 STRASSE \u1e9e \u01c5",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u65e5\u672c\u8a9e \u0e44\u0e17\u0e22",
    "\U0001f408\u200d\u2b1b \U0001f469\U0001f3fd\u200d\U0001f680 \u2167 \u00bd \u0664",
    "<pad>a<eos>b <bos",
    "nul \0 and \x1f",
    "ab" * 40,
    "##un [UNK] !<|endoftext|>! </w> \ufb01n\u00ad \u201cq\u201d \u732b\u3002\ufffd _x",
)


class GoldenPicture(NamedTuple):
    """One picture: bytes of `noise` from `seed`, read in `mode`, turned by `orientation`."""

    width: int
    height: int
    mode: str
    orientation: int
    seed: int


def golden_header(spec: PreprocessSpec, tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """Return the text of `pocketlens_golden.h`: CRC-32 of the expected pixels, ids of the expected rows."""
    pictures = [_picture_line(picture, spec) for picture in _pictures(spec)]
    encoded = golden_texts(texts)
    rows = tokenizer.encode_batch(encoded)
    data = b"".join(text.encode() for text in encoded)
    ends = np.cumsum([len(text.encode()) for text in encoded])
    return _HEADER.format(
        pictures="\n".join(pictures),
        picture_count=len(pictures),
        text_count=len(encoded),
        ends=_numbers(ends.tolist()),
        text_bytes=_numbers(data),
        rows=_numbers(rows.ravel().tolist()),
    )


def golden_texts(texts: Sequence[str]) -> list[str]:
    """Return the built-in texts and `texts`."""
    return [*_TEXTS, *texts]


def noise(count: int, seed: int) -> NDArray[np.uint8]:
    """Return `count` bytes that C makes in three lines: a multiplicative hash of the index, uint32 throughout."""
    value = (np.arange(count, dtype=np.uint32) + np.uint32(seed)) * np.uint32(2654435761)
    value ^= value >> np.uint32(15)
    value *= np.uint32(2246822519)
    return (value >> np.uint32(24)).astype(np.uint8)


def _pictures(spec: PreprocessSpec) -> Iterator[GoldenPicture]:
    """Yield what the spec does not refuse of: every orientation and format, one pixel, strips, a photograph's size."""
    strip = min(90, spec.max_aspect)
    candidates = [
        *((61, 43, "RGB", orientation) for orientation in range(1, 9)),
        *((53, 67, mode, orientation) for mode in PIXEL_FORMATS[1:] for orientation in (1, 6)),
        (1, 1, "RGB", 1),
        (strip, 1, "RGB", 1),
        (1, strip, "RGBA", 8),
        (spec.width_px, spec.height_px, "RGB", 1),
        (640, 480, "RGB", 6),
        (1200, 901, "RGB", 3),
    ]
    for seed, (width, height, mode, orientation) in enumerate(candidates):
        longer, shorter = max(width, height), min(width, height)
        if width * height <= spec.max_pixels and longer <= spec.max_aspect * shorter:
            yield GoldenPicture(width, height, mode, orientation, 1000 * seed)


def _picture_line(picture: GoldenPicture, spec: PreprocessSpec) -> str:
    channels = 3 if picture.mode == "RGB" else 4
    data = noise(picture.width * picture.height * channels, picture.seed)
    # The fourth byte of RGBX is not looked at: Pillow has the same mode, and would carry it along.
    image = Image.frombytes(picture.mode, (picture.width, picture.height), data.tobytes())
    if picture.mode == "RGBX":
        image = image.convert("RGB")
    image.getexif()[_ORIENTATION_TAG] = picture.orientation
    crc = zlib.crc32(preprocess(image, spec).tobytes())
    number = PIXEL_FORMATS.index(picture.mode)
    return f"    {{{picture.width}, {picture.height}, {number}, {picture.orientation}, {picture.seed}u, {crc:#010x}u}},"


def _numbers(numbers: Iterable[int]) -> str:
    words = [f"{number}," for number in numbers]
    return "\n".join("    " + " ".join(words[at : at + 20]) for at in range(0, len(words), 20))


_HEADER: Final = """\
/*
 * pocketlens_golden.h: what pocketlens makes of {picture_count} pictures and {text_count} texts with this bundle.
 * Written by `pocketlens export`; read by pocketlens_selftest.c, which holds this build to the same bits.
 */
#ifndef POCKETLENS_GOLDEN_H
#define POCKETLENS_GOLDEN_H

#include <stdint.h>

/* Stored width and height, pl_format, orientation, seed of the noise, CRC-32 of the expected pixels. */
typedef struct pl_golden_picture {{
    int32_t width;
    int32_t height;
    int32_t format;
    int32_t orientation;
    uint32_t seed;
    uint32_t crc;
}} pl_golden_picture;

#define PL_GOLDEN_PICTURES {picture_count}
static const pl_golden_picture pl_golden_pictures[] = {{
{pictures}
}};

/* Where each text ends in the bytes. */
#define PL_GOLDEN_TEXTS {text_count}
static const uint32_t pl_golden_ends[] = {{
{ends}
}};
static const uint8_t pl_golden_bytes[] = {{
{text_bytes}
}};

/* One row of PL_CONFIG_TEXT_LENGTH ids a text. */
static const int32_t pl_golden_rows[] = {{
{rows}
}};

#endif /* POCKETLENS_GOLDEN_H */
"""
