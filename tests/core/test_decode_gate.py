"""What the gate counts before it decodes, and that large pictures come out as small ones do."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.decode import decode, decode_image, upright_image
from pocketlens.core.errors import PictureError
from pocketlens.core.picture_frames import MAX_FRAMES, stated_frames
from pocketlens.core.picture_header import jpeg_scans, stated_size
from pocketlens.core.preprocess import preprocess, read_bytes
from pocketlens.core.preprocess_spec import PreprocessSpec
from tests.core.test_decode import WIDE_RGB, blocks, encoded, png, tiff

SPEC = PreprocessSpec(height_px=32, width_px=32)


def refused(data: bytes) -> PictureError:
    with pytest.raises(PictureError) as refusal:
        decode(data, SPEC)
    return refusal.value


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("count", [1, 5])
def test_frames_and_pages_are_counted(kind: str, count: int) -> None:
    frames = [Image.fromarray(np.roll(blocks(), 8 * at, axis=1)) for at in range(count)]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if count > 1 else {}
    stated = stated_frames(encoded(frames[0], kind, **options), kind)
    assert count <= stated <= count + (kind == "GIF")  # whose mark occurs by chance too


def test_more_frames_than_anybody_makes_are_refused() -> None:
    many = (b"acTL", struct.pack(">II", MAX_FRAMES + 1, 0))
    error = refused(png(2, 1, 8, 0, b"\1\2", many))
    assert error.kind == "too_many_pixels"
    assert "10,000 frames" in error.expected
    as_many = (b"acTL", struct.pack(">II", MAX_FRAMES, 0))
    assert decode(png(2, 1, 8, 0, b"\1\2", as_many), SPEC).shape == (1, 2, 3)


def test_pages_that_lead_in_a_circle_cost_nothing() -> None:
    data = tiff(2, 1, 8, b"\1\2")
    start = struct.unpack_from("<I", data, 4)[0]
    circle = data[:-4] + struct.pack("<I", start)
    assert stated_frames(circle, "TIFF") == 1
    assert decode(circle, SPEC)[0, :, 0].tolist() == [1, 2]


@pytest.mark.parametrize("bytes_before", [0, 1, 2**18 - 2, 2**18 - 1, 2**18, 2**19 - 1])
def test_every_scan_is_counted_once_wherever_it_stands(bytes_before: int) -> None:
    data = bytes(bytes_before) + b"\xff\xda" + bytes(5) + b"\xff\xff\xda\xda"
    assert jpeg_scans(data) == 2
    assert jpeg_scans(data[: bytes_before + 1]) == 0
    assert jpeg_scans(b"") == 0


def test_a_file_that_is_longer_than_its_status_says_is_read_to_its_end_or_refused() -> None:
    endless = Path("/proc/self/environ")  # of 0 bytes, says the kernel
    if not endless.exists() or not (expected := endless.read_bytes()):
        pytest.skip("needs /proc")
    assert read_bytes(endless) == expected
    with pytest.raises(PictureError) as refusal:
        read_bytes(endless, max_bytes=len(expected) - 1)
    assert refusal.value.kind == "too_large"


TEXT = (b"zTXt", b"key\0\0" + zlib.compress(b"a" * 1000))
PACKED = (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"a" * 1000))
PLAIN = (b"iTXt", b"key\0\0\0\0\0words")


@pytest.mark.parametrize("chunk", [TEXT, PACKED])
def test_packed_texts_beyond_a_number_are_refused_and_plain_ones_are_not(chunk: tuple[bytes, bytes]) -> None:
    assert "packed texts" in refused(png(2, 1, 8, 0, b"\1\2", *[chunk] * 17)).found
    assert decode(png(2, 1, 8, 0, b"\1\2", *[chunk] * 16), SPEC).size == 6
    assert decode(png(2, 1, 8, 0, b"\1\2", *[PLAIN] * 200), SPEC).size == 6


@pytest.mark.parametrize("name", [b"teSt", b"IDAT"])
def test_a_png_of_endless_chunks_is_refused(name: bytes) -> None:
    error = refused(png(2, 1, 8, 0, b"\1\2", *[(name, b"")] * 3000))
    assert error.kind == "corrupt"
    assert "chunks" in error.found


@pytest.mark.parametrize("part", [b"\xff\xfe\0\2", b"\xff\xe5\0\2", b"\xff"])
def test_a_jpeg_of_endless_segments_is_refused(part: bytes) -> None:
    data = encoded(blocks(), "JPEG")
    assert "segments" in refused(data[:2] + part * 6000 + data[2:]).found
    assert decode(data[:2] + part * 900 + data[2:], SPEC).shape == (32, 48, 3)


def test_a_gif_of_endless_extensions_is_refused() -> None:
    data = encoded(Image.fromarray(blocks()).quantize(16), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    for block in (b"\x21\xfe\0", b"\x21\xff\x01a\0", b"\0"):
        assert "extension blocks" in refused(data[:at] + block * 11_000 + data[at:]).found
        assert decode(data[:at] + block * 100 + data[at:], SPEC).shape == (32, 48, 3)


def test_a_tiff_of_endless_tags_is_refused() -> None:
    data = tiff(2, 1, 8, b"\1\2")
    start = struct.unpack_from("<I", data, 4)[0]
    many = data[:start] + struct.pack("<H", 2001) + data[start + 2 :] + b"\0" * 2001 * 12
    assert "tags" in refused(many).found


def test_an_exif_block_of_endless_tags_counts_as_upright() -> None:
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) * 3000
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3000) + entries + b"\0" * 4
    np.testing.assert_array_equal(decode(encoded(blocks(), "PNG", exif=exif), SPEC), blocks())
    few = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entries[:12] + b"\0" * 4
    assert decode(encoded(blocks(), "PNG", exif=few), SPEC).shape == (48, 32, 3)


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"save_all": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}]
)
def test_the_stated_size_of_webp_files_is_read_from_each_kind_of_header(options: dict[str, Any]) -> None:
    data = encoded(Image.new("RGB", (301, 207)), "WEBP", **options)
    assert stated_size(data) == (301, 207)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16", "YCbCr", "HSV"])
@pytest.mark.parametrize("profile", [None, WIDE_RGB])
def test_in_bands_the_pixels_are_the_same(mode: str, profile: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = Image.fromarray(np.random.default_rng(8).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    if mode == "LAB":
        image = Image.frombytes("LAB", (30, 40), colour.tobytes())
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 200)
    elif mode in {"I", "F"}:
        levels = np.asarray(colour.convert("L")).astype(np.int32 if mode == "I" else np.float32)
        image = Image.fromarray((levels - 77) * 1000)
    elif mode in {"LA", "RGBA"}:
        image = colour.convert(mode)
        image.putalpha(colour.getchannel(1))
    else:
        image = colour.convert(mode)
    image.info = {} if profile is None else {"icc_profile": profile}
    if mode == "P":
        image.info["transparency"] = 3
    if mode == "RGB":
        image.info["transparency"] = colour.getpixel((3, 3))
    whole = decode(image, SPEC)
    monkeypatch.setattr("pocketlens.core.colour._BAND_PIXELS", 90)
    np.testing.assert_array_equal(decode(image, SPEC), whole)


def test_a_picture_of_the_program_is_not_changed_and_a_decoded_one_has_no_metadata() -> None:
    image = Image.fromarray(blocks())
    image.info["comment"] = b"mine"
    assert upright_image(image, SPEC) is image
    copy = decode_image(image, SPEC)
    copy.thumbnail((8, 8))
    decode(image, SPEC)[:] = 0
    preprocess(image, SPEC)[:] = 0
    np.testing.assert_array_equal(np.asarray(image), blocks())
    assert image.info == {"comment": b"mine"}

    exif = Image.Exif()
    exif[0x010F] = "A maker"
    decoded = decode_image(encoded(blocks(), "JPEG", exif=exif, comment=b"secret", icc_profile=WIDE_RGB), SPEC)
    assert not decoded.info
    file = io.BytesIO()
    decoded.save(file, "JPEG")
    assert not any(word in file.getvalue() for word in (b"secret", b"A maker", b"Exif", b"ICC_PROFILE"))


@pytest.mark.parametrize("compiled", [True, False])
def test_memory_that_runs_out_while_resizing_is_a_refusal(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    if compiled:
        monkeypatch.setattr("pocketlens.core.preprocess.fit_compiled", exhausted)
    else:
        monkeypatch.setattr("pocketlens.core.preprocess.fit_compiled", lambda source, spec: None)
        monkeypatch.setattr(Image.Image, "resize", exhausted)
    with pytest.raises(PictureError) as refusal:
        preprocess(encoded(blocks(), "PNG"), SPEC)
    assert refusal.value.kind == "too_many_pixels"
    assert "memory" in refusal.value.expected
