"""Decoding: the gate refuses with one typed error, and what passes is upright opaque sRGB."""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from pocketlens.core.decode import decode
from pocketlens.core.errors import PICTURE_KINDS, PictureError
from pocketlens.core.picture_source import read_bytes
from pocketlens.core.preprocess_spec import PreprocessSpec

SPEC = PreprocessSpec(height_px=32, width_px=32)


def blocks(height: int = 32, width: int = 48) -> NDArray[Any]:
    """Return a picture without symmetry, of even 8 x 8 blocks, which JPEG keeps almost unchanged."""
    cells = np.random.default_rng(5).integers(40, 216, (height // 8, width // 8, 3), dtype=np.uint8)
    return cells.repeat(8, axis=0).repeat(8, axis=1)


def encoded(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of stored `rows` (filter type 0), for the variants that Pillow does not write."""
    stride = max(1, (width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8)
    data = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(width: int, height: int, bits: int, data: bytes, *, order: str = "<", kind: int = 1) -> bytes:
    """Return a one-strip grey TIFF file; `kind` 1 unsigned, 2 signed, 3 float samples."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, kind)]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + struct.pack(f"{order}I" if tag in (273, 279) else f"{order}HH", value, *(() if tag in (273, 279) else (0,)))
        for tag, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data) + len(data) % 2)
    return head + data + b"\0" * (len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4


def icc(space: bytes, class_: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC v2 profile (ICC.1:2001-04, section 6)."""
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        padded = data + b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += padded
    white = struct.pack(">iii", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02200000, class_, space, connection)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white + b"\0" * 48
    return header + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


GAMMA_2 = b"curv\0\0\0\0" + struct.pack(">IH", 1, 2 * 256)
# Colorants of Display P3 and of sRGB, adapted to D50, one row per channel.
P3 = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
WIDE_RGB = icc(
    b"RGB ",
    b"mntr",
    b"XYZ ",
    {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    | {name + b"XYZ": xyz(*row) for name, row in zip((b"r", b"g", b"b"), P3, strict=True)}
    | {name + b"TRC": GAMMA_2 for name in (b"r", b"g", b"b")},
)
GREY_GAMMA_2 = icc(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": GAMMA_2})


def srgb_levels(linear: NDArray[Any]) -> NDArray[Any]:
    """IEC 61966-2-1: linear light in [0, 1] to levels 0..255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


# --- upright ---------------------------------------------------------------------------------

# EXIF 2.32, table 6: which side of the scene row 0 and column 0 of the stored picture show.
STORED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 6),
    ],
)
def test_all_orientations_come_out_upright(
    kind: str, options: dict[str, Any], tolerance: int, orientation: int
) -> None:
    upright = blocks()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation](upright)), kind, exif=exif, **options)
    pixels = decode(data, SPEC)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= tolerance


def test_a_pil_image_is_turned_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(np.rot90(blocks()).copy(), "PNG", exif=exif)))
    np.testing.assert_array_equal(decode(image, SPEC), blocks())


def test_orientation_in_xmp_counts_where_exif_has_none() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    data = encoded(np.ascontiguousarray(blocks()[::-1, ::-1]), "PNG", pnginfo=info)
    np.testing.assert_array_equal(decode(data, SPEC), blocks())


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_a_broken_exif_block_does_not_cost_the_picture(exif: bytes) -> None:
    assert decode(encoded(blocks(), "JPEG", exif=exif), SPEC).shape == (32, 48, 3)


def test_an_orientation_out_of_range_counts_as_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(decode(encoded(blocks(), "PNG", exif=exif), SPEC), blocks())


# --- pixels of every kind --------------------------------------------------------------------

RAMP = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13)


def grey(levels: NDArray[Any]) -> NDArray[Any]:
    return np.stack([levels] * 3, axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes(kind: str, mode: str) -> None:
    ramp = Image.fromarray(grey(RAMP))
    source = ramp.quantize(256) if mode == "P" else ramp.convert(mode, dither=Image.Dither.NONE)
    expected = grey(np.where(RAMP >= 128, 255, 0)) if mode == "1" else grey(RAMP)
    np.testing.assert_array_equal(decode(encoded(source, kind), SPEC), expected)


def over_matte(colour: NDArray[Any], alpha: NDArray[Any], matte: Iterable[int]) -> NDArray[Any]:
    """Return the exact composite, halves up, in integers."""
    weight = alpha[..., None].astype(int)
    total = weight * colour + (255 - weight) * np.array(list(matte))
    halves_up: NDArray[Any] = (2 * total + 255) // 510
    return halves_up


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("matte", [(255, 255, 255), (0, 0, 0), (12, 200, 99)])
def test_alpha_shows_the_matte(mode: str, matte: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    alpha = rng.integers(0, 256, RAMP.shape, dtype=np.uint8)
    colour = grey(RAMP) if mode == "LA" else rng.integers(0, 256, (*RAMP.shape, 3), dtype=np.uint8)
    stored = np.dstack([RAMP, alpha] if mode == "LA" else [colour, alpha])
    spec = PreprocessSpec(height_px=8, width_px=8, matte=matte)
    pixels = decode(encoded(np.ascontiguousarray(stored), "PNG"), spec)
    np.testing.assert_array_equal(pixels, over_matte(colour, alpha, matte))


def test_premultiplied_modes_are_divided_before_they_are_composited() -> None:
    straight = Image.new("RGBA", (3, 2), (200, 100, 50, 128))
    expected = over_matte(np.full((2, 3, 3), (200, 100, 50)), np.full((2, 3), 128), (255, 255, 255))
    for mode in ("RGBa", "La"):
        image = straight.convert(mode) if mode == "RGBa" else Image.new("LA", (3, 2), (90, 128)).convert("La")
        wanted = (
            expected if mode == "RGBa" else over_matte(np.full((2, 3, 3), 90), np.full((2, 3), 128), (255, 255, 255))
        )
        assert np.abs(decode(image, SPEC).astype(int) - wanted).max() <= 1


def test_palette_transparency_shows_the_matte() -> None:
    palette = (b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    data = png(3, 1, 8, 3, bytes([0, 1, 2]), palette, (b"tRNS", bytes([0, 128, 255])))
    spec = PreprocessSpec(height_px=8, width_px=8, matte=(10, 20, 30))
    expected = over_matte(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]), np.array([[0, 128, 255]]), (10, 20, 30))
    np.testing.assert_array_equal(decode(data, spec), expected)
    np.testing.assert_array_equal(decode(data, spec)[0, 0], (10, 20, 30))


@pytest.mark.parametrize(
    ("bits", "colour", "rows", "key", "expected"),
    [
        (1, 0, bytes([0b01000000]), b"\0\1", [[0] * 3, [9] * 3]),
        (4, 0, bytes([0x3A]), b"\0\3", [[9] * 3, [170] * 3]),
        (8, 0, bytes([3, 170]), b"\0\3", [[9] * 3, [170] * 3]),
        (16, 0, b"\x03\x07\xaa\x07", b"\x03\x07", [[9] * 3, [170] * 3]),
        (8, 2, bytes([1, 2, 3, 1, 2, 4]), b"\0\1\0\2\0\3", [[9] * 3, [1, 2, 4]]),
        (16, 2, bytes([1, 0, 2, 0, 3, 0, 1, 0, 2, 0, 4, 0]), b"\1\0\2\0\3\0", [[9] * 3, [1, 2, 4]]),
    ],
)
def test_a_transparent_colour_shows_the_matte(
    bits: int, colour: int, rows: bytes, key: bytes, expected: list[list[int]]
) -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, matte=(9, 9, 9))
    data = png(2, 1, bits, colour, rows, (b"tRNS", key))
    np.testing.assert_array_equal(decode(data, spec), [expected])


DEEP = np.array([[0, 255, 256, 257, 32767, 32768, 65279, 65280, 65535]], np.uint16)


def test_16_bit_samples_are_scaled_the_same_way_in_grey_and_colour() -> None:
    expected = grey(DEEP >> 8)
    assert expected.max() == 255
    high_first = DEEP.astype(">u2")
    sources = {
        "png grey": png(9, 1, 16, 0, high_first.tobytes()),
        "png colour": png(9, 1, 16, 2, grey(DEEP).astype(">u2").tobytes()),
        "png grey and alpha": png(9, 1, 16, 4, np.dstack([DEEP, DEEP | 65535]).astype(">u2").tobytes()),
        "tiff": tiff(9, 1, 16, DEEP.astype("<u2").tobytes()),
        "tiff, high byte first": tiff(9, 1, 16, high_first.tobytes(), order=">"),
    }
    for name, data in sources.items():
        np.testing.assert_array_equal(decode(data, SPEC), expected, err_msg=name)
    image = Image.fromarray(DEEP.astype(np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(decode(image, SPEC), expected)


def test_12_bit_samples_are_scaled_by_their_own_range() -> None:
    # Two samples in three bytes: 0xfff, 0x800.
    np.testing.assert_array_equal(decode(tiff(2, 1, 12, b"\xff\xf8\x00"), SPEC), [[[255] * 3, [128] * 3]])


def test_16_bit_pictures_are_turned_upright() -> None:
    levels = (np.arange(6, dtype=np.uint16) * 8000).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(levels)))
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=exif), SPEC), grey(levels >> 8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
        ([-1.0, 0.0, 1.0, 3.0], [0, 64, 128, 255]),
        ([0.0, 50.0, 100.0, np.nan], [0, 128, 255, 0]),
        ([np.inf, -np.inf, 0.0, 1.0], [255, 0, 0, 255]),
        ([-3.4e38, 3.4e38, 0.0, 0.0], [0, 255, 128, 128]),
        ([7.0] * 4, [0] * 4),
        ([np.nan] * 4, [0] * 4),
    ],
)
def test_float_samples_are_read_against_one_or_stretched(values: list[float], expected: list[int]) -> None:
    data = tiff(4, 1, 32, np.array(values, "<f4").tobytes(), kind=3)
    np.testing.assert_array_equal(decode(data, SPEC), grey(np.array([expected])))


def test_wide_integers_without_a_stated_white_are_stretched() -> None:
    data = tiff(3, 1, 32, np.array([-(2**31), 0, 2**31 - 1], "<i4").tobytes(), kind=2)
    np.testing.assert_array_equal(decode(data, SPEC), grey(np.array([[0, 128, 255]])))


def test_cmyk_and_ycck_jpegs_keep_their_colours() -> None:
    wanted = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [128, 128, 128]])
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 127)]
    strip = np.array(inks, np.uint8).repeat(16, axis=0)[None].repeat(16, axis=0)
    # Pillow writes what Adobe does: inverted, with an APP14 segment. Transform 2 there is YCCK.
    data = encoded(Image.fromarray(strip, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(decode(data, SPEC)[8, 8::16].astype(int) - wanted).max() <= 2

    # The inks as if they were RGB, then YCbCr, then inverted like all that Pillow stores in CMYK.
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(strip[..., :3])).convert("YCbCr"))
    stored = np.dstack([255 - luma, strip[..., 3]])
    data = encoded(Image.fromarray(stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe") + 11
    ycck = data[:at] + b"\2" + data[at + 1 :]
    assert np.abs(decode(ycck, SPEC)[8, 8::16].astype(int) - wanted).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_only_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 10, 10), (10, 10, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    pixels = decode(data, SPEC).astype(int)
    assert np.abs(pixels - (250, 10, 10)).max() <= 3


# --- ICC profiles ----------------------------------------------------------------------------


def test_a_wide_gamut_profile_is_converted_to_srgb() -> None:
    colours = np.array([[[200, 100, 100], [90, 160, 120], [60, 70, 140], [128, 128, 128], [255, 255, 255]]], np.uint8)
    linear = (colours / 255.0) ** 2
    expected = srgb_levels(linear @ P3 @ np.linalg.inv(SRGB))
    pixels = decode(encoded(colours, "PNG", icc_profile=WIDE_RGB), SPEC)
    np.testing.assert_allclose(pixels, expected, atol=2)
    assert np.abs(pixels.astype(int) - colours).max() > 10


def test_a_profile_applies_to_palettes_and_to_the_colours_under_alpha() -> None:
    colour = np.full((4, 4, 3), (200, 100, 100), np.uint8)
    expected = decode(encoded(colour, "PNG", icc_profile=WIDE_RGB), SPEC)
    palette = Image.fromarray(colour).quantize(4)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG", icc_profile=WIDE_RGB), SPEC), expected)
    alpha = np.full((4, 4), 100, np.uint8)
    data = encoded(np.dstack([colour, alpha]), "PNG", icc_profile=WIDE_RGB)
    np.testing.assert_array_equal(decode(data, SPEC), over_matte(expected, alpha, (255, 255, 255)))


def test_a_grey_profile_applies_to_grey_pictures() -> None:
    pixels = decode(encoded(RAMP, "PNG", icc_profile=GREY_GAMMA_2), SPEC)
    np.testing.assert_allclose(pixels, grey(srgb_levels((RAMP / 255.0) ** 2)), atol=2)


def test_a_cmyk_profile_is_used_instead_of_the_plain_formula() -> None:
    # A table of 2**4 corners: paper, one ink that prints a dull blue, everything else black.
    corners = [(100, 0, 0) if ink == 0 else (50, 0, -40) if ink == 8 else (0, 0, 0) for ink in range(16)]
    lab = b"".join(struct.pack(">HHH", int(light * 652.8), (a + 128) * 256, (b + 128) * 256) for light, a, b in corners)
    identity = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    curve = struct.pack(">HH", 0, 65535)
    table = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + struct.pack(">HH", 2, 2) + curve * 4 + lab + curve * 3
    profile = icc(b"CMYK", b"prtr", b"Lab ", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"A2B0": table, b"A2B1": table})
    strip = np.zeros((16, 48, 4), np.uint8)
    strip[:, 16:32, 0] = 255
    strip[:, 32:, 3] = 255
    image = Image.fromarray(strip, "CMYK")
    tagged = decode(encoded(image, "JPEG", quality=100, icc_profile=profile), SPEC)[8, 8::16].astype(int)
    plain = decode(encoded(image, "JPEG", quality=100), SPEC)[8, 8::16].astype(int)
    np.testing.assert_allclose(plain, [(255, 255, 255), (0, 255, 255), (0, 0, 0)], atol=3)
    # CIE 15:2004: L*a*b* (50, 0, -40) to XYZ under D50, all three above the linear part.
    blue = (np.array([66 / 116, 66 / 116, 66 / 116 + 40 / 200]) ** 3) * (0.9642, 1.0, 0.8249)
    dull_blue = srgb_levels(blue @ np.linalg.inv(SRGB))
    expected = np.array([(255, 255, 255), tuple(dull_blue), (0, 0, 0)])
    np.testing.assert_allclose(tagged, expected, atol=3)


def test_an_srgb_profile_leaves_every_pixel_alone() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode(encoded(blocks(), "PNG", icc_profile=profile), SPEC), blocks())


@pytest.mark.parametrize("profile", [b"nonsense", WIDE_RGB[:150], WIDE_RGB[:300], GREY_GAMMA_2, b"\0" * 200])
def test_a_broken_or_unfit_profile_is_ignored(profile: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded(blocks(), "PNG", icc_profile=profile), SPEC), blocks())


# --- what is refused -------------------------------------------------------------------------


def refused(source: object, spec: PreprocessSpec = SPEC) -> PictureError:
    with pytest.raises(PictureError) as refusal:
        decode(source, spec)  # type: ignore[arg-type]
    error = refusal.value
    assert error.kind in PICTURE_KINDS
    assert all((error.what, error.expected, error.found, error.remedy))
    return error


@pytest.mark.parametrize("name", ["absent.jpg", "a\0b.jpg", "x" * 300, "\ud800.jpg", "file.png/inside.png"])
def test_a_path_that_leads_nowhere_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.png").write_bytes(encoded(blocks(), "PNG"))
    error = refused(f"{tmp_path}/{name}")
    assert error.kind == "missing"
    str(error).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX thing")
def test_folders_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        assert refused(path).kind == "not_a_file"


class _Broken(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError("the card was pulled out")


def test_what_cannot_be_read_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    for source in (_Broken(), closed, io.StringIO("text")):
        assert refused(source).kind == "unreadable"
    path = tmp_path / "locked.png"
    path.write_bytes(b"x")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    assert refused(path).kind == "unreadable"


def test_empty_sources(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    for source in (path, b"", io.BytesIO()):
        assert refused(source).kind == "empty"


def test_oversized_sources_are_not_read_whole(tmp_path: Path) -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, max_bytes=1000)
    path = tmp_path / "large.png"
    path.write_bytes(b"\0" * 1001)
    stream = io.BytesIO(b"\0" * 5000)
    for source in (path, b"\0" * 1001, stream):
        assert refused(source, spec).kind == "too_large"
    assert stream.tell() == 1001
    assert len(read_bytes(b"\0" * 1000, max_bytes=1000)) == 1000


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"Dear diary,\nno picture today.", "text that begins with 'Dear diary,'"),
        ("Größe".encode(), "text that begins with 'Größe'"),
        (b"  \n", "blank text"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 20, "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "RIFF"),
        (b"BM, the first words of a letter", "text"),
        (bytes(range(128, 160)), "32 bytes that begin with 80 81 82"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    error = refused(path)
    assert error.kind == "unknown_type"
    assert found in error.found
    assert "holiday.jpg" in error.what


@pytest.mark.parametrize("source", [None, 7, ["a.jpg"], np.zeros((4, 4, 3))])
def test_sources_of_another_type(source: object) -> None:
    assert refused(source).kind == "unknown_type"


def test_formats_outside_the_spec_are_not_parsed() -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, formats=("JPEG",))
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        error = refused(encoded(blocks(), kind), spec)
        assert error.kind == "type_not_allowed"
        assert kind in error.found
    # Never allowed by default, whatever Pillow could do with them.
    for data in (encoded(blocks(), "ICO"), encoded(blocks(), "PPM")):
        assert refused(data).kind == "type_not_allowed"


def test_an_mpo_is_told_from_a_jpeg() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    only = {name: PreprocessSpec(height_px=8, width_px=8, formats=(name,)) for name in ("JPEG", "MPO")}
    assert decode(data, only["MPO"]).shape == (16, 16, 3)
    assert refused(data, only["JPEG"]).kind == "type_not_allowed"
    assert refused(encoded(blocks(), "JPEG"), only["MPO"]).kind == "type_not_allowed"


def test_an_allowed_format_without_a_decoder_says_so() -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, formats=("JXL",))
    error = refused(b"\xff\x0a" + b"\0" * 40, spec)
    assert error.kind == "type_not_allowed"
    assert "no decoder" in error.found


@pytest.mark.parametrize("side", [8001, 9500, 20000, 2**31 - 1])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    # The data is far too short for the size: a decoder that started would call it corrupt.
    error = refused(png(side, side, 8, 2, b"\0" * 300))
    assert error.kind == "too_many_pixels"
    assert f"{side * side:,}" in error.found


def test_a_bomb_within_a_generous_spec_does_not_warn() -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, max_pixels=10**8)
    assert refused(png(9500, 9500, 1, 0, b"\0" * 300), spec).kind == "corrupt"


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused() -> None:
    data = bytearray(encoded(Image.new("L", (16, 16)), "GIF"))
    at = data.index(b",", 13)  # image descriptor: left, top, width, height
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    assert refused(bytes(data)).kind == "too_many_pixels"


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(blocks(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    error = refused(data[:last] + data[last:-2] * 200 + data[-2:])
    assert error.kind == "corrupt"
    assert "scans" in error.found


@pytest.mark.parametrize(
    "data",
    [
        png(0, 0, 8, 2, b""),
        png(0, 9, 8, 2, b""),
        png(1, 20000, 8, 0, b"\0" * 20000),
        png(20000, 1, 8, 0, b"\0" * 20000),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 0, 5, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a\0\0\0\0\0\0\0;",
    ],
)
def test_pictures_without_area_and_endless_strips_have_a_bad_shape(data: bytes) -> None:
    assert refused(data).kind == "bad_shape"


def test_a_jpeg_of_no_height_has_a_bad_shape() -> None:
    data = bytearray(encoded(blocks(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 7] = b"\0\0"
    assert refused(bytes(data)).kind == "bad_shape"


def test_limits_hold_for_decoded_pictures_too() -> None:
    spec = PreprocessSpec(height_px=8, width_px=8, max_pixels=1000)
    for wide, high, kind in ((101, 10, "too_many_pixels"), (101, 1, "bad_shape"), (0, 5, "bad_shape")):
        assert refused(np.zeros((high, wide, 3), np.uint8), spec).kind == kind
        assert refused(Image.new("RGB", (wide, high)), spec).kind == kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("AVIF", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_corrupt_whatever_the_program_has_set(
    kind: str, options: dict[str, Any], kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    data = encoded(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert refused(data[: int(len(data) * kept)]).kind == "corrupt"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_running_out_of_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    assert refused(encoded(blocks(), "PNG")).kind == "too_many_pixels"


def originals() -> dict[str, bytes]:
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encoded(image, "JPEG", exif=exif, icc_profile=WIDE_RGB),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "mpo": encoded(image, "MPO", save_all=True, append_images=[image]),
        "png": encoded(image.convert("RGBA"), "PNG", exif=exif, icc_profile=WIDE_RGB),
        "palette": encoded(image.quantize(16), "PNG", transparency=3),
        "deep": png(20, 12, 16, 0, rng.bytes(480)),
        "apng": encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        "gif": encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "webp": encoded(image, "WEBP", exif=exif),
        "bmp": encoded(image, "BMP"),
        "tiff": encoded(image, "TIFF", exif=exif),
        "float": tiff(20, 12, 32, rng.standard_normal(240).astype("<f4").tobytes(), kind=3),
        "avif": encoded(image, "AVIF"),
    }


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    # Headers are short and decide the most: half of the hits go there.
    for _ in range(rng.integers(1, 6)):
        limit = len(changed) if rng.random() < 0.5 else min(len(changed), 64)
        changed[rng.integers(0, limit)] = rng.choice(np.array([0, 1, 127, 128, 255, rng.integers(0, 256)]))
    start, length = rng.integers(0, len(changed)), rng.integers(1, 40)
    action = rng.integers(0, 5)
    if action == 0:
        del changed[start:]
    elif action == 1:
        del changed[start : start + length]
    elif action == 2:
        changed[start:start] = rng.bytes(int(length))
    return bytes(changed)


@pytest.mark.parametrize("name", sorted(originals()))
def test_mutated_files_decode_or_are_refused_and_nothing_else(name: str) -> None:
    data = originals()[name]
    spec = PreprocessSpec(height_px=8, width_px=8, max_pixels=10**6)
    assert decode(data, spec).size == 12 * 20 * 3
    rng = np.random.default_rng(list(name.encode()))
    refusals: list[str] = []
    for _ in range(40):
        try:
            pixels = decode(mutated(data, rng), spec)
        except PictureError as error:
            refusals.append(error.kind)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert 0 < pixels.size <= 3 * 10**6
    assert refusals
    assert set(refusals) <= set(PICTURE_KINDS)


def test_threads_leave_the_settings_of_the_program_as_they_were() -> None:
    # Pillow warns about this one: its second EXIF entry points past the end.
    odd = encoded(blocks(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xff\0\0\0\0\0\0\0")
    before = list(warnings.filters)
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode(odd, SPEC)
        except (PictureError, Warning) as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == before
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant
