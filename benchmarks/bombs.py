"""Generates 200 picture bombs and has each refused, in a decoding process and in this one.

Run: python -m benchmarks.bombs

A bomb is small and asks for much: pixels that are only stated, frames or pages without end, scans over the
whole picture again and again, blocks that unpack to gigabytes, tables of a million entries. The clock runs
from handing over the bytes to the `PictureError`.
"""

import argparse
import io
import struct
import sys
import time
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.mutations import memory_peak_bytes, originals
from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import PictureWorker

SPEC = PreprocessSpec(
    height_px=96, width_px=96, formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
)
LIMIT_MS = 50.0


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a PNG chunk (PNG 1.2, section 3.2)."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, before: bytes = b"", data: bytes = b"") -> bytes:
    """Return a PNG file that states this size; `data` is what its pixels are packed from."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    width: int, height: int, *, big: bool = False, order: str = "<", pages: int = 1, extra: int = 0, strips: int = 1
) -> bytes:
    """Return a TIFF file of `pages` directories that state this size, with `extra` unknown tags each."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 16)]
    tags += [(40_000 + at % 20_000, 1) for at in range(extra)]
    word, head_size = ("Q", 16) if big else ("I", 8)
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    size = struct.calcsize(order + ("Q" if big else "H")) + len(tags) * entry.size + struct.calcsize(order + word)
    mark = b"II" if order == "<" else b"MM"
    parts = [mark, struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)]
    for page in range(pages):
        following = head_size + (page + 1) * size if page + 1 < pages else 0
        counted = [(tag, strips if tag in (273, 279) else 1, value) for tag, value in tags]
        parts.append(struct.pack(order + ("Q" if big else "H"), len(tags)))
        parts += [entry.pack(tag, 4, count, value) for tag, count, value in counted]
        parts.append(struct.pack(order + word, following))
    return b"".join(parts)


def gif(width: int, height: int, *, frames: int = 1) -> bytes:
    """Return a GIF file of `frames` frames of this size, each with hardly any data."""
    head = b"GIF89a" + struct.pack("<HHBBB", width % 65536, height % 65536, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x01\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, width % 65536, height % 65536, 0)
    return head + (frame + b"\x02\x02\x4c\x01\0") * frames + b";"


def webp(width: int, height: int, kind: bytes) -> bytes:
    """Return a WebP file of one of the three kinds that states this size (RFC 9649, section 2)."""
    wide, high = width - 1, height - 1
    body = {
        b"VP8 ": b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF),
        b"VP8L": b"\x2f" + struct.pack("<I", (wide & 0x3FFF) | (high & 0x3FFF) << 14),
        b"VP8X": b"\0\0\0\0" + struct.pack("<I", wide & 0xFFFFFF)[:3] + struct.pack("<I", high & 0xFFFFFF)[:3],
    }[kind] + b"\0" * 30
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, *, bits: int = 24, packed: int = 0) -> bytes:
    """Return a BMP file that states this size."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packed, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + info + b"\0" * 64


def jpeg(width: int, height: int, *, frame: int = 0xC0, components: int = 3) -> bytes:
    """Return a JPEG file whose frame header states this size."""
    data = originals_of("JPEG")[0]
    at = data.index(b"\xff\xc0")
    head = struct.pack(">HH", height, width)
    return data[: at + 1] + bytes([frame]) + data[at + 2 : at + 5] + head + data[at + 9 :] + b"\0" * components


_ORIGINALS: dict[str, list[bytes]] = {}


def originals_of(kind: str) -> list[bytes]:
    """Return the sound files of a format, made once; none where it cannot be written here."""
    if not _ORIGINALS:
        _ORIGINALS.update(originals())
    return _ORIGINALS.get(kind, [])


def restated(data: bytes, width: int, height: int) -> bytes:
    """Return an AVIF or HEIF file in which every item states this size (ISO/IEC 23008-12, 6.5.3: `ispe`)."""
    file, at = bytearray(data), data.find(b"ispe")
    while at >= 0:
        file[at + 8 : at + 16] = struct.pack(">II", width, height)
        at = data.find(b"ispe", at + 4)
    return bytes(file)


def many_scans(count: int, side: int) -> bytes:
    """Return a progressive JPEG file whose last scan comes `count` times more."""
    file = io.BytesIO()
    Image.new("L", (side, side), 99).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


_SIDES = ((65535, 65535), (20000, 20000), (60000, 1200), (1200, 60000), (8001, 8000), (16000, 4001))
_HUGE = ((2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (2**31, 2**31), (100_000, 100_000))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield more than 200 bombs, each with a name."""
    yield from _stated_sizes()
    yield from _stated_webp_sizes()
    yield from _stated_item_sizes()
    yield from _without_end()
    yield from _packed()
    yield from _empty_parts()


def _stated_sizes() -> Iterator[tuple[str, bytes]]:
    for width, height in _SIDES + _HUGE:
        for bits, colour in ((8, 2), (1, 0), (16, 6)):
            yield f"PNG {width}x{height} of {bits} bits", png(width, height, bits=bits, colour=colour)
        for order in "<>":
            yield f"TIFF {width}x{height} {order}", tiff(width, height, order=order)
        yield f"BigTIFF {width}x{height}", tiff(width, height, big=True)
        for bits in (1, 24):
            size = (min(width, 2**31 - 1), min(height, 2**31 - 1))
            yield f"BMP {size[0]}x{size[1]} of {bits} bits", bmp(*size, bits=bits)
    for width, height in _SIDES:
        yield f"GIF {width}x{height}", gif(width, height)
        yield f"JPEG {width}x{height}", jpeg(width, height)
        yield f"progressive JPEG {width}x{height}", jpeg(width, height, frame=0xC2)


def _stated_webp_sizes() -> Iterator[tuple[str, bytes]]:
    for width, height in ((16383, 16383), (16000, 4001), (4001, 16000), (8001, 8000), (10_000, 10_000)):
        for kind in (b"VP8 ", b"VP8L", b"VP8X"):
            yield f"WebP {kind.decode()} {width}x{height}", webp(width, height, kind)
    for width, height in ((2**24, 2**24), (2**24, 4), (30_000, 30_000), (100_000, 1000)):
        yield f"WebP VP8X {width}x{height}", webp(width, height, b"VP8X")


def _stated_item_sizes() -> Iterator[tuple[str, bytes]]:
    for kind in ("AVIF", "HEIF"):
        # Without the last one of AVIF: a sequence, which states its size elsewhere.
        for number, data in enumerate(originals_of(kind)[: 2 if kind == "AVIF" else 3]):
            for width, height in _SIDES + _HUGE:
                yield f"{kind} {number} {width}x{height}", restated(data, width, height)


def _without_end() -> Iterator[tuple[str, bytes]]:
    for count in (101, 1_000, 20_000):
        yield f"JPEG of {count} scans", many_scans(count, 64)
    for frames in (10_001, 60_000):
        yield f"GIF of {frames} frames", gif(9, 9, frames=frames)
        yield f"TIFF of {frames} pages", tiff(9, 9, pages=frames)
        yield f"BigTIFF of {frames} pages", tiff(9, 9, pages=frames, big=True)
        animation = chunk(b"acTL", struct.pack(">II", frames, 0))
        yield f"PNG of {frames} frames", png(9, 9, before=animation, data=b"\0" * 1000)
        frame = b"ANMF" + struct.pack("<I", 16) + b"\0" * 16
        yield f"WebP of {frames} frames", webp(9, 9, b"VP8X") + frame * frames


def _packed() -> Iterator[tuple[str, bytes]]:
    text = zlib.compress(b"a" * 2**26, 9)
    yield "PNG with 64 MB of packed text", png(9, 9, before=chunk(b"zTXt", b"k\0\0" + text))
    yield "PNG with 64 MB of packed UTF-8", png(9, 9, before=chunk(b"iTXt", b"k\0\1\0\0\0" + text))
    megabyte = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"b" * 10**6, 9))
    yield "PNG with 300 packed texts", png(9, 9, before=megabyte * 300)
    pixels = zlib.compress(b"\0" * 2**28, 9)
    body = png(20_000, 20_000)[: 8 + 25]
    yield "PNG of 256 MB in 256 KB", body + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    for extra in (60_000, 65_000):
        yield f"TIFF with {extra} tags", tiff(9, 9, extra=extra)
        yield f"big-endian TIFF with {extra} tags", tiff(9, 9, extra=extra, order=">")
    yield "TIFF of 2^31 strips", tiff(9, 9, strips=2**31 - 1)


def _empty_parts() -> Iterator[tuple[str, bytes]]:
    for count in (20_000, 2_000_000):
        jpeg_file = originals_of("JPEG")[1]
        for name, segment in (("comments", b"\xff\xfe\0\2"), ("application segments", b"\xff\xe5\0\2")):
            yield f"JPEG with {count} {name}", jpeg_file[:2] + segment * count + jpeg_file[2:]
        yield f"JPEG with {count} fill bytes", jpeg_file[:2] + b"\xff" * count + jpeg_file[2:]
        yield f"PNG with {count} empty chunks", png(9, 9, before=chunk(b"teSt", b"") * count)
        yield f"PNG with {count} empty IDAT chunks", png(9, 9, before=chunk(b"IDAT", b"") * count)
        gif_file = originals_of("GIF")[0]
        at = gif_file.index(b"\x21\xf9\x04")
        for name, block in (("comments", b"\x21\xfe\0"), ("applications", b"\x21\xff\0")):
            yield f"GIF with {count} empty {name}", gif_file[:at] + block * count + gif_file[at:]


def main() -> None:
    """Print how the bombs were refused and the slowest ones; exit code 1 where one was not, or too late."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every bomb")
    options = parser.parse_args()
    cases = list(bombs())
    failed = 0
    with PictureWorker() as worker:
        worker.start()
        worker.prepare(np.zeros((9, 9, 3), np.uint8), SPEC)
        for name, prepare in (("worker", worker.prepare), ("in process", preprocess)):
            preprocess(originals_of("PNG")[0], SPEC)
            kinds: dict[str, int] = {}
            times = []
            for bomb, data in cases:
                worker.start()
                began = time.perf_counter()
                try:
                    prepare(data, SPEC)
                    kind, found = "READ", ""
                except PictureError as error:
                    kind, found = error.kind, error.found
                took_ms = 1000 * (time.perf_counter() - began)
                times.append((took_ms, bomb, kind))
                kinds[kind] = kinds.get(kind, 0) + 1
                failed += kind == "READ" or took_ms >= LIMIT_MS
                if options.list or kind == "READ":
                    print(f"{took_ms:7.1f} ms {kind:16} {bomb}: {found}")
            print(f"{name}: {len(cases)} bombs, {kinds}; slowest:")
            for took_ms, bomb, kind in sorted(times, reverse=True)[:5]:
                print(f"  {took_ms:6.1f} ms {kind:16} {bomb}")
        print(f"worker: {worker.starts} start, {memory_peak_bytes(worker.pid) / 10**6:.0f} MB at most")
    print(f"not refused, or not within {LIMIT_MS:.0f} ms: {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
