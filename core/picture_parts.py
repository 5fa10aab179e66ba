"""How many parts the header of a file is made of. Pillow walks over each of them in Python, one by one.

A file of 64 MB may hold 20 million empty blocks: minutes of work before anything is known about the picture.
The walks here are shorter, and they end where a limit is passed.
"""

from typing import Final

__all__ = ["MAX_DIRECTORY_ENTRIES", "directory_entries", "too_many_parts"]

MAX_DIRECTORY_ENTRIES: Final = 2_000
"""Most entries of a TIFF or EXIF directory. TIFF 6.0 and EXIF 3.0 together define fewer than 300 tags."""

# An ICC profile of 16 MB fills 255 segments, an extended XMP block of the whole 64 MB 1,024.
_MAX_JPEG_SEGMENTS: Final = 5_000
# 64 MB in pieces of 8 KB, libpng's own, are 8,192 chunks.
_MAX_PNG_CHUNKS: Final = 2_000
_PNG_BYTES_A_CHUNK: Final = 2_048
# Each may unpack to 1 MB, which Pillow allows, up to 64 MB in all.
_MAX_PACKED_TEXTS: Final = 16
# An XMP block of 1 MB has 4,112 blocks of 255 bytes before the first frame.
_MAX_GIF_BLOCKS: Final = 10_000


def too_many_parts(data: bytes, header: str) -> str | None:
    """Return what there is too much of, in words, or `None`.

    Args:
        data: the file.
        header: what `pocketlens.core.picture_header.sniff` said of it.
    """
    if header == "JPEG":
        return _jpeg(data)
    if header == "PNG":
        return _png(data)
    if header == "GIF":
        return _gif(data)
    if header == "TIFF":
        return "tags" if directory_entries(data) > MAX_DIRECTORY_ENTRIES else None
    return None


def directory_entries(data: bytes) -> int:
    """Return how many entries the first directory of a TIFF file, or of an EXIF block, states."""
    order = "little" if data[:2] == b"II" else "big"
    if _number(data[2:4], order) == 43:  # BigTIFF
        at = _number(data[8:16], order)
        return _number(data[at : at + 8], order)
    at = _number(data[4:8], order)
    return _number(data[at : at + 2], order)


def _number(field: bytes, order: str) -> int:
    return int.from_bytes(field, "little" if order == "little" else "big")


def _jpeg(data: bytes) -> str | None:
    """Walk from marker to marker up to the first scan (ITU-T T.81, B.1.1.2: fill bytes may precede each)."""
    at, steps = 2, 0
    while at + 4 <= len(data) and steps <= _MAX_JPEG_SEGMENTS:
        steps += 1
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
            continue
        if data[at + 1] == 0xDA:
            return None
        bare = data[at + 1] == 0x01 or 0xD0 <= data[at + 1] <= 0xD9
        at += 2 if bare else 2 + max(2, _number(data[at + 2 : at + 4], "big"))
    return "segments or fill bytes" if steps > _MAX_JPEG_SEGMENTS else None


def _gif(data: bytes) -> str | None:
    """Walk over the extensions before the first frame (GIF89a, sections 15 and 24)."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    steps, inside = 0, False
    while at < len(data) and steps <= _MAX_GIF_BLOCKS:
        steps += 1
        if inside:  # a block and its length, 0 at the end
            inside = data[at] > 0
            at += 1 + data[at]
        elif data[at] == 0x21:
            inside = True
            at += 2
        elif data[at] in b"\x2c\x3b":
            return None
        else:
            at += 1
    return "extension blocks" if steps > _MAX_GIF_BLOCKS else None


def _png(data: bytes) -> str | None:
    at, chunks, texts = 8, 0, 0
    most = _MAX_PNG_CHUNKS + len(data) // _PNG_BYTES_A_CHUNK
    while at + 12 <= len(data):
        chunks += 1
        name = data[at + 4 : at + 8]
        texts += name == b"zTXt" or (name == b"iTXt" and _is_packed(data[at + 8 : at + 90]))
        if chunks > most:
            return "chunks"
        if texts > _MAX_PACKED_TEXTS:
            return "packed texts"
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return None


def _is_packed(text: bytes) -> bool:
    """Whether an iTXt chunk is compressed: the byte after its keyword of 1 to 79 letters (PNG 1.2, 4.2.3)."""
    _, _, rest = text.partition(b"\0")
    return rest[:1] == b"\1"
