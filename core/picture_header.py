"""What the first bytes of a file say it is. Reads magic numbers only; decodes nothing."""

from typing import Final

import numpy as np

__all__ = ["PICTURE_FORMATS", "describe", "jpeg_scans", "sniff", "stated_size"]

PICTURE_FORMATS: Final = (
    "AVIF",
    "BMP",
    "DDS",
    "GIF",
    "HEIF",
    "ICNS",
    "ICO",
    "JPEG",
    "JPEG2000",
    "JXL",
    "MPO",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "TIFF",
    "WEBP",
)
"""Formats that are recognised by their header, by Pillow's names; a spec may allow a part of them.

`MPO` is a JPEG file with further pictures behind the first one: its header is a JPEG header.
"""

_MAGIC: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
    (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "ICO"),
)

_NOT_PICTURES: Final = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x7fELF", "a Linux program"),
    (b"MZ", "a Windows program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
)

_BMP_HEADER_SIZES: Final = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))

_BLOCK_BYTES: Final = 2**18

_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
)


def sniff(data: bytes) -> str | None:
    """Return the format that the header of `data` belongs to, or `None` when it belongs to none.

    Args:
        data: the file, or its first 256 bytes.

    Returns:
        A member of `PICTURE_FORMATS`; never `MPO`, whose header is a plain JPEG header.
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _sniff_brands(data)
    # Two letters are too little evidence: the size of the second header must be a known one.
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADER_SIZES:
        return "BMP"
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b" \t\r\n#":
        return "PPM"
    return None


def _sniff_brands(data: bytes) -> str | None:
    size = min(int.from_bytes(data[:4], "big"), 256)
    # Bytes 12..16 are the minor version, not a brand.
    brands = {data[at : at + 4] for at in (8, *range(16, size - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIF"
    return None


def describe(data: bytes) -> str:
    """Return a few words on what `data`, which is no picture, looks like. For error messages."""
    for magic, words in _NOT_PICTURES:
        if data.startswith(magic):
            return words
    if data[4:8] == b"ftyp":
        return "a video (MP4 family)"
    if data[:4] == b"RIFF":
        return "a RIFF file that is not WebP (sound or video)"
    head = data[:256]
    text = _as_text(head)
    if text is None:
        return f"{len(data):,} bytes that begin with {head[:8].hex(' ')}"
    start = text.lstrip("\ufeff \t\r\n")
    lowered = start.lower()
    if lowered.startswith(("<svg", "<?xml")):
        return "an SVG or other XML document"
    if lowered.startswith(("<!doctype html", "<html")):
        return "an HTML page"
    return f"text that begins with {start.splitlines()[0][:32]!r}" if start else "blank text"


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut in two by the end of `head` is still text.
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode("utf-8")
    return text if all(mark.isprintable() or mark in "\ufeff\t\r\n\f" for mark in text) else None


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels as the header states them, or `None` where it is not plain.

    Covers PNG, GIF, BMP, JPEG and WebP, whose libraries reserve memory for the stated size, or report a
    picture without area as if it were broken. For the others opening the file is cheap and safe.
    """
    name = sniff(data)
    if name == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if name == "GIF" and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if name == "BMP" and len(data) >= 26:
        if data[14] == 12:
            return int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little")
        width = int.from_bytes(data[18:22], "little", signed=True)
        return width, abs(int.from_bytes(data[22:26], "little", signed=True))
    if name == "WEBP" and len(data) >= 30:
        return _webp_size(data)
    return _jpeg_size(data) if name == "JPEG" else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the canvas size: WebP container specification; RFC 9649, sections 2.5 to 2.7."""
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # SOF0..SOF15, without the three of that range that are other tables (ITU-T T.81, B.1.1.3).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            return int.from_bytes(data[at + 7 : at + 9], "big"), height
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA or length < 2:
            return None
        at += 2 + length
    return None


def jpeg_scans(data: bytes) -> int:
    """Return how many start-of-scan markers `data` may hold; an upper bound, no parsing.

    A baseline file has 1 to 4, a progressive one about 10. Each scan costs a pass over all
    coefficients, so thousands of almost empty ones are a decompression bomb in time.
    """
    # `data.count(b"\xff\xda")` takes 1.6 ns a byte, a tenth of all the work on a 12-megapixel file that is scaled.
    marks = np.frombuffer(data, np.uint8)
    found = 0
    for at in range(0, len(data), _BLOCK_BYTES):
        block = marks[at : at + _BLOCK_BYTES + 1]  # and one more, so that no marker falls between two blocks
        found += int(np.count_nonzero((block[:-1] == 0xFF) & (block[1:] == 0xDA)))
    return found
