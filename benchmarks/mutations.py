"""Damages pictures of seven formats in many ways and has the decoding process read them.

Run: python -m benchmarks.mutations --count 100000 --journal /tmp/mutations.json

Mutation number i of a seed is always the same file. The journal is written every 250 files: the same
command goes on where an earlier one ended, however it ended. A run that began and neither came to its end
nor was interrupted by Ctrl+C or SIGTERM counts as a death of the host.
"""

import argparse
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import PictureWorker

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "HEIF")
SPEC = PreprocessSpec(height_px=64, width_px=64, formats=(*FORMATS, "MPO", "BMP"))
Rng = np.random.Generator
_EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def photograph(rng: Rng, height: int, width: int) -> Image.Image:
    """Return a picture with slopes and noise, so that every part of a codec has something to do."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / rng.uniform(3, 30) + columns / rng.uniform(3, 30)) for _ in range(3)]
    levels = 128 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return `image` encoded."""
    file = io.BytesIO()
    # Copies: Pillow keeps an encoder's settings on the picture, and other encoders trip over them.
    if "append_images" in options:
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(file, kind, **options)
    return file.getvalue()


def _heif(image: Image.Image, **options: Any) -> bytes:
    from pillow_heif import from_pillow

    file = io.BytesIO()
    from_pillow(image).save(file, **options)
    return file.getvalue()


def originals(seed: int = 0) -> dict[str, list[bytes]]:
    """Return sound files of each of `FORMATS`, in several variants; without pillow-heif, no HEIF."""
    rng = np.random.default_rng(seed)
    small, other = photograph(rng, 90, 120), photograph(rng, 90, 120)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A maker"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray((np.asarray(small.convert("L")).astype(np.uint16) << 8) | 7)
    frames: dict[str, Any] = {"save_all": True, "append_images": [other]}
    files = {
        "JPEG": [
            saved(small, "JPEG", exif=exif, icc_profile=icc),
            saved(small, "JPEG", progressive=True, quality=90, subsampling=0),
            saved(small.convert("CMYK"), "JPEG"),
            saved(small.convert("L"), "JPEG", restart_marker_rows=1),
            saved(small, "MPO", **frames),
        ],
        "PNG": [
            saved(small.convert("RGBA"), "PNG", exif=exif, icc_profile=icc),
            saved(small.quantize(16), "PNG", transparency=3),
            saved(deep, "PNG"),
            saved(small, "PNG", **frames),
        ],
        "WEBP": [
            saved(small, "WEBP", exif=exif, icc_profile=icc),
            saved(small.convert("RGBA"), "WEBP", lossless=True),
            saved(small, "WEBP", **frames),
        ],
        "AVIF": [
            saved(small, "AVIF", exif=exif, icc_profile=icc, speed=10),
            saved(small.convert("RGBA"), "AVIF", speed=10),
            saved(small, "AVIF", speed=10, **frames),
        ],
        "GIF": [saved(small.quantize(64), "GIF", transparency=5), saved(small, "GIF", **frames)],
        "TIFF": [
            saved(small, "TIFF", exif=exif, icc_profile=icc),
            saved(small, "TIFF", compression="tiff_lzw"),
            saved(small, "TIFF", compression="jpeg"),
            saved(small.convert("1"), "TIFF", compression="group4"),
            saved(deep, "TIFF", compression="tiff_adobe_deflate"),
            saved(small, "TIFF", **frames),
        ],
    }
    try:
        files["HEIF"] = [
            _heif(small, exif=exif.tobytes(), quality=60),
            _heif(small.convert("RGBA"), quality=40),
            _heif(small.resize((192, 144)), quality=40, tile_size=64),
        ]
    except ImportError:
        print("pillow-heif is not installed: HEIF is left out", file=sys.stderr)
    return files


# Where each format writes lengths, counts and offsets: a pattern, and the distance from its start to the field.
_FIELDS: dict[str, tuple[tuple[bytes, int, int], ...]] = {
    "JPEG": ((rb"\xff[\xc0-\xfe]", 2, 2), (rb"\xff[\xc0-\xcf]", 5, 4)),
    "PNG": ((rb"IHDR|IDAT|PLTE|tRNS|iCCP|eXIf|acTL|fcTL|fdAT|IEND", -4, 4), (rb"IHDR", 4, 8)),
    "WEBP": ((rb"RIFF|VP8 |VP8L|VP8X|ALPH|ANIM|ANMF|EXIF|ICCP", 4, 4), (rb"VP8X", 12, 6), (rb"VP8 ", 14, 4)),
    "GIF": ((rb"\x2c", 1, 8), (rb"GIF8", 6, 4), (rb"\x21[\xf9\xff\xfe]", 2, 1)),
    "TIFF": ((rb"II\x2a|MM\x00", 4, 4), (rb"[\x00\x01\x11\x15\x16\x17\x1a\x1c][\x01\x87]", 2, 10)),
}
_BOXES = rb"ftyp|meta|hdlr|pitm|iinf|infe|iprp|ipco|ipma|ispe|iloc|idat|iref|mdat|hvcC|av1C|colr|dimg|moov|stsz"
_FIELDS["AVIF"] = _FIELDS["HEIF"] = ((_BOXES, -4, 4), (_BOXES, 4, 12))


def _flip(data: bytearray, rng: Rng, kind: str, others: list[bytes]) -> None:
    # Headers are short and decide the most: half of the hits go there.
    for _ in range(rng.integers(1, 5)):
        limit = len(data) if rng.random() < 0.5 else min(len(data), 256)
        data[rng.integers(0, limit)] ^= 1 << int(rng.integers(0, 8))


def _cut(data: bytearray, rng: Rng, kind: str, others: list[bytes]) -> None:
    start = int(rng.integers(0, len(data)))
    del data[start : len(data) if rng.random() < 0.5 else start + int(rng.integers(1, 200))]


def _splice(data: bytearray, rng: Rng, kind: str, others: list[bytes]) -> None:
    other = others[int(rng.integers(0, len(others)))]
    start, source = int(rng.integers(0, len(data))), int(rng.integers(0, len(other)))
    length = int(rng.integers(1, 1 + min(2_000, len(other))))
    end = start + (length if rng.random() < 0.5 else 0)
    data[start:end] = other[source : source + length]


def _edit_field(data: bytearray, rng: Rng, kind: str, others: list[bytes]) -> None:
    fields = _FIELDS[kind]
    for _ in range(rng.integers(1, 4)):
        pattern, distance, span = fields[int(rng.integers(0, len(fields)))]
        places = [found.start() + distance for found in re.finditer(pattern, data)]
        if not places:
            continue
        width = min(span, int(rng.choice((1, 2, 4))))
        at = int(rng.choice(places)) + int(rng.integers(0, span - width + 1))
        order: Any = "little" if rng.random() < 0.5 else "big"
        old = int.from_bytes(data[at : at + width], order)
        new = int(rng.choice(_EDGES)) if rng.random() < 0.7 else old + int(rng.integers(-3, 4))
        data[at : at + width] = (new % 256**width).to_bytes(width, order)


def _noise(data: bytearray, rng: Rng, kind: str, others: list[bytes]) -> None:
    start = int(rng.integers(0, len(data)))
    length = int(rng.integers(1, 64))
    data[start : start + length] = rng.bytes(length)


_MUTATIONS: tuple[Callable[[bytearray, Rng, str, list[bytes]], None], ...] = (
    _flip,
    _cut,
    _splice,
    _edit_field,
    _edit_field,
    _noise,
)


def mutation(files: dict[str, list[bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Return the format and the damaged file that belong to (seed, number): 1 or 2 damages of one original."""
    rng = np.random.default_rng([seed, number])
    kind = list(files)[number % len(files)]
    originals_ = files[kind]
    data = bytearray(originals_[int(rng.integers(0, len(originals_)))])
    for _ in range(rng.integers(1, 3)):
        if data:
            _MUTATIONS[int(rng.integers(0, len(_MUTATIONS)))](data, rng, kind, originals_)
    if kind == "PNG" and rng.random() < 0.8:
        _repair_checksums(data)  # or next to nothing would get past them
    return kind, bytes(data)


def _repair_checksums(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def memory_peak_bytes(pid: int | None) -> int:
    """Return the most memory that the process had so far, 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


class Run:
    """The figures so far, kept in a file."""

    def __init__(self, journal: Path, seed: int) -> None:
        self.journal = journal
        state = json.loads(journal.read_text()) if journal.exists() else {}
        if state and state["seed"] != seed:
            sys.exit(f"{journal} belongs to seed {state['seed']}: pass another journal")
        self.done: int = state.get("done", 0)
        self.outcomes = Counter[str](state.get("outcomes", {}))
        self.figures = Counter[str](state.get("figures", {}))
        self.seed = seed
        self.figures["host starts"] += 1
        self.stopped = False
        # The machine may be lent to somebody else for a while: such a picture is read once more.
        signal.signal(signal.SIGCONT, lambda *_: setattr(self, "stopped", True))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.save()

    def save(self) -> None:
        """Write the journal, whole or not at all."""
        state = {"seed": self.seed, "done": self.done, "outcomes": self.outcomes, "figures": self.figures}
        with tempfile.NamedTemporaryFile("w", dir=self.journal.parent, delete=False) as file:
            json.dump(state, file)
        os.replace(file.name, self.journal)

    def note(self, kind: str, outcome: str, took_ms: float, number: int) -> None:
        """Count one file."""
        self.done += 1
        self.outcomes[f"{kind} {outcome}"] += 1
        if took_ms > self.figures["slowest ms"]:
            self.figures["slowest ms"], self.figures["slowest is number"] = round(took_ms), number


def run(count: int, seed: int, journal: Path, *, in_process: bool = False) -> Run:
    """Have mutations read until `count` of the journal are done."""
    files = originals()
    figures = Run(journal, seed)
    try:
        with PictureWorker() as worker:
            prepare = preprocess if in_process else worker.prepare
            before = 0
            while figures.done < count:
                number = figures.done
                kind, data = mutation(files, seed, number)
                if not in_process:
                    worker.start()  # after a restart too: the start is not the picture's time
                began = time.perf_counter()
                try:
                    pixels = prepare(data, SPEC)
                    outcome = "read" if pixels.shape == (64, 64, 3) else "of a wrong shape"
                except PictureError as error:
                    outcome = error.kind
                    if outcome == "crashed_decoder":
                        print(f"number {number}: {error}", file=sys.stderr, flush=True)
                took_ms = 1000 * (time.perf_counter() - began)
                if figures.stopped and outcome != "crashed_decoder":
                    figures.figures["once more: the host was stopped"] += 1
                    figures.stopped = False
                    continue
                figures.note(kind, outcome, took_ms, number)
                peak = memory_peak_bytes(worker.pid)
                figures.figures["worker peak MB"] = max(figures.figures["worker peak MB"], peak // 10**6)
                figures.figures["worker starts"] += worker.starts - before
                before = worker.starts
                if figures.done % 250 == 0:
                    figures.save()
        figures.figures["host ends"] += 1
    except KeyboardInterrupt:
        figures.figures["host ends"] += 1
    figures.save()
    return figures


def main() -> None:
    """Print the counts by format and outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=7_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path, default=Path(tempfile.gettempdir()) / "pocketlens-mutations.json")
    parser.add_argument("--in-process", action="store_true", help="decode in this process, without a worker")
    options = parser.parse_args()
    figures = run(options.count, options.seed, options.journal, in_process=options.in_process)
    kinds = sorted({name.split()[0] for name in figures.outcomes})
    outcomes = sorted({name.split(maxsplit=1)[1] for name in figures.outcomes})
    print(f"{'':16}" + "".join(f"{kind:>8}" for kind in kinds) + f"{'all':>9}")
    for outcome in outcomes:
        row = [figures.outcomes[f"{kind} {outcome}"] for kind in kinds]
        print(f"{outcome:16}" + "".join(f"{number:8,}" for number in row) + f"{sum(row):9,}")
    for name, value in figures.figures.items():
        print(f"{name}: {value:,}")
    print(f"host deaths: {figures.figures['host starts'] - figures.figures['host ends']:,}")


if __name__ == "__main__":
    main()
