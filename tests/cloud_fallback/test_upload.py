"""What leaves the device is small, upright, and says nothing but its pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from pocketlens.cloud_fallback.upload import minimised_jpeg
from pocketlens.core.errors import PictureError

START_OF_SCAN = 0xDA
# JFIF header, quantization and Huffman tables, baseline frame, scan.
PIXEL_SEGMENTS = {0xE0, 0xDB, 0xC0, 0xC4, START_OF_SCAN}


def segments(jpeg: bytes) -> list[int]:
    """Return the markers of the segments up to the scan (ITU-T T.81, B.1.1)."""
    found: list[int] = []
    position = 2
    while not found or found[-1] != START_OF_SCAN:
        assert jpeg[position] == 0xFF
        found.append(jpeg[position + 1])
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return found


def test_the_fixture_tells_tales(tell_tale_jpeg: bytes, tell_tale_png: bytes) -> None:
    assert {0xE1, 0xE2, 0xFE} <= set(segments(tell_tale_jpeg))
    assert tell_tale_jpeg.count(b"TELLTALE") == 4
    assert Image.open(io.BytesIO(tell_tale_jpeg)).getexif().get_ifd(0x8825)[1] == "N"
    assert b"TELLTALE" in tell_tale_png


def test_no_metadata_is_left(tell_tale_jpeg: bytes, tell_tale_png: bytes) -> None:
    for picture in (tell_tale_jpeg, tell_tale_png):
        upload = minimised_jpeg(picture, max_px=256)
        assert b"TELLTALE" not in upload
        assert b"Exif" not in upload
        assert set(segments(upload)) <= PIXEL_SEGMENTS
        assert upload.endswith(b"\xff\xd9")
        opened = Image.open(io.BytesIO(upload))
        assert opened.format == "JPEG"
        assert opened.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_the_picture_is_upright_and_its_longer_side_fits(tell_tale_jpeg: bytes) -> None:
    opened = Image.open(io.BytesIO(minimised_jpeg(tell_tale_jpeg, max_px=400)))
    assert opened.size == (300, 400)
    turned = np.asarray(opened.convert("RGB")).astype(int)
    # Orientation 6 turns the stored picture clockwise: its red left half is now on top.
    assert turned[:100, :, 0].mean() > 150
    assert turned[-100:, :, 0].mean() < 50


def test_a_small_picture_is_not_blown_up(tell_tale_png: bytes) -> None:
    assert Image.open(io.BytesIO(minimised_jpeg(tell_tale_png, max_px=4096))).size == (90, 60)


def test_a_thin_strip_keeps_one_pixel() -> None:
    out = io.BytesIO()
    Image.new("RGB", (2000, 20)).save(out, "PNG")
    assert Image.open(io.BytesIO(minimised_jpeg(out.getvalue(), max_px=32))).size == (32, 1)


@pytest.mark.parametrize("broken", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut short"])
def test_what_is_no_picture_is_refused(broken: bytes) -> None:
    with pytest.raises(PictureError):
        minimised_jpeg(broken, max_px=256)
