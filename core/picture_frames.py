"""How many frames or pages the header of a file states. Counts; decodes nothing.

Only the first frame is ever decoded, but libraries walk over all of them when they open a file.
"""

from typing import Final

__all__ = ["MAX_FRAMES", "stated_frames"]

MAX_FRAMES: Final = 10_000
"""A file that states more frames or pages than this is refused. An hour of a slide show has 3,600."""


def stated_frames(data: bytes, header: str) -> int:
    """Return how many frames or pages `data` states, or a bound above that; at least 1.

    GIF and WebP frames are counted by their marks, which also occur by chance: those of GIF once in
    64 KiB of noise, 1,024 times in the largest file that the default spec takes. A chain of TIFF pages
    is followed for `MAX_FRAMES` + 1 steps at most.

    Args:
        data: the file.
        header: what `pocketlens.core.picture_header.sniff` said of it.
    """
    if header == "GIF":
        # The end of a block, then an image descriptor (GIF89a, section 20).
        return max(1, data.count(b"\0\x2c"))
    if header == "PNG":
        at = data.find(b"acTL", 8, data.find(b"IDAT", 8) + 1 or len(data))  # APNG, before the pixels
        return max(1, _number(data, at + 4, 4)) if at > 0 else 1
    if header == "WEBP":
        return max(1, data.count(b"ANMF"))
    if header == "TIFF":
        return _tiff_pages(data)
    if header in {"AVIF", "HEIF"}:
        return max(1, data.count(b"infe", 0, _HEAD_BYTES), _sequence_samples(data))
    return 1


_HEAD_BYTES: Final = 2**20


def _number(data: bytes, at: int, length: int, order: str = "big") -> int:
    return int.from_bytes(data[at : at + length], "little" if order == "little" else "big")


def _tiff_pages(data: bytes) -> int:
    """Follow the chain of directories (TIFF 6.0, section 2; BigTIFF: 8-byte offsets and counts)."""
    order = "little" if data[:2] == b"II" else "big"
    big = _number(data, 2, 2, order) == 43
    width, count_width, entry = (8, 8, 20) if big else (4, 2, 12)
    at = _number(data, 8 if big else 4, width, order)
    seen: set[int] = set()  # a chain may lead in a circle, which costs nothing where only its first page is read
    while 0 < at < len(data) and at not in seen and len(seen) <= MAX_FRAMES:
        seen.add(at)
        entries = _number(data, at, count_width, order)
        at = _number(data, at + count_width + entries * entry, width, order)
    return max(1, len(seen))


def _sequence_samples(data: bytes) -> int:
    """Return the greatest sample count of the tracks (ISO/IEC 14496-12, 8.7.3: `stsz`)."""
    most, at = 0, data.find(b"stsz", 0, _HEAD_BYTES)
    while at >= 0:
        most = max(most, _number(data, at + 12, 4))
        at = data.find(b"stsz", at + 4, _HEAD_BYTES)
    return most
