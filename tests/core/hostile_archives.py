"""Archives that somebody built to do harm: each is a function of the files of a valid bundle.

`build` writes headers like `pocketlens.core.zip_layout` does, but takes any name and lets each header be
changed, so that a case differs from a good archive in one thing.
"""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256

from pocketlens.core import zip_layout
from pocketlens.core.zip_layout import central_header, end_record, local_header

__all__ = ["HOSTILE", "Case", "Files", "build", "resealed"]

Files = list[tuple[str, bytes]]


def build(
    files: Files,
    *,
    change_local: Callable[[str, bytes], bytes] = lambda _, header: header,
    change_central: Callable[[str, bytes], bytes] = lambda _, header: header,
    body: Callable[[str, bytes], bytes] = lambda _, data: data,
) -> bytes:
    """Return an archive with any names at all, its headers passed through the two changes."""
    data, directory = b"", b""
    for name, content in files:
        local = _named(local_header("x", len(content), zlib.crc32(content)), 26, name)
        central = _named(central_header("x", len(content), zlib.crc32(content), len(data)), 28, name)
        data += change_local(name, local) + body(name, content)
        directory += change_central(name, central)
    return data + directory + end_record(len(files), len(directory), len(data))


def _named(header: bytes, length_at: int, name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    return header[:length_at] + struct.pack("<H", len(raw)) + header[length_at + 2 : -1] + raw


def _field(at: int, form: str, value: int, only: str = "tokenizer.json") -> Callable[[str, bytes], bytes]:
    def change(name: str, header: bytes) -> bytes:
        if name != only:
            return header
        packed = struct.pack(form, value)
        return header[:at] + packed + header[at + len(packed) :]

    return change


def resealed(files: Files, extra: Files) -> Files:
    """Return the files and `extra` with sums that list them all: only the names are hostile."""
    content = [file for file in files if file[0] != "SHA256SUMS"] + extra
    lines = b"".join(
        sha256(data).hexdigest().encode() + b"  " + name.encode("utf-8", "surrogateescape") + b"\n"
        for name, data in content
    )
    return [("SHA256SUMS", lines), *content]


def _zipfile(files: Files, **options: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as writer:  # type: ignore[arg-type]
        for name, data in files:
            writer.writestr(name, data)
    return buffer.getvalue()


NAMES = {
    "parent": "../escaped.txt",
    "parent deep": "golden/../../escaped.txt",
    "parent at the end": "golden/..",
    "parent, backslashes": "..\\escaped.txt",
    "absolute": "/tmp/escaped.txt",
    "absolute, two slashes": "//host/escaped.txt",
    "absolute, backslash": "\\escaped.txt",
    "drive": "C:\\escaped.txt",
    "drive, slash": "C:/escaped.txt",
    "drive, relative": "C:escaped.txt",
    "stream": "tokenizer.json:stream",
    "UNC": "\\\\host\\share\\escaped.txt",
    "dot": "./escaped.txt",
    "dot inside": "golden/./escaped.txt",
    "empty part": "golden//escaped.txt",
    "folder entry": "golden/",
    "empty name": "",
    "only a slash": "/",
    "NUL": "golden/a\0.txt",
    "newline": "golden/a\nb.txt",
    "carriage return": "golden/a\r.txt",
    "escape sequence": "golden/\x1b[2J.txt",
    "delete": "golden/\x7f.txt",
    "trailing dot": "golden/a.txt.",
    "trailing blank": "golden/a.txt ",
    "leading blank": "golden/ a.txt",
    "trailing dots folder": "golden.../a.txt",
    "device": "golden/CON",
    "device with extension": "golden/aux.json",
    "device port": "com1.txt",
    "device folder": "nul/a.txt",
    "wildcard": "golden/*.txt",
    "pipe letter": "golden/a|b",
    "home": "golden/\u202egpj.exe",
    "composed": "golden/caf\u00e9.txt",
    "decomposed": "golden/cafe\u0301.txt",
    "full width dots": "\uff0e\uff0e/escaped.txt",
    "full width slash": "golden\uff0fescaped.txt",
    "overlong UTF-8": "golden/\udcc0\udcaf.txt",
    "not UTF-8": "golden/\udcff.txt",
    "too long": "golden/" + "a" * 240,
    "too deep": "a/" * 200 + "a",
}

PAIRS: dict[str, Files] = {
    "duplicate": [("golden/a", b"1"), ("golden/a", b"2")],
    "case": [("golden/a", b"1"), ("golden/A", b"2")],
    "case of a folder": [("golden/a", b"1"), ("Golden/b", b"2")],
    "case of the manifest": [("MANIFEST.JSON", b"{}")],
    "case of the sums": [("sha256sums", b"x")],
    "file and folder": [("golden/a", b"1"), ("golden/a/b", b"2")],
    "file and folder, case": [("golden/a", b"1"), ("golden/A/b", b"2")],
    "second manifest": [("manifest.json", b"{}")],
    "second sums": [("SHA256SUMS", b"x")],
}

A_FILE = "tokenizer.json"
MODES = {
    "link": 0o120777,
    "hard link in disguise": 0o160000,
    "folder": 0o040755,
    "character device": 0o020666,
    "block device": 0o060666,
    "pipe": 0o010666,
    "socket": 0o140777,
    "set user id": 0o104755,
    "set group id": 0o102755,
    "world writable": 0o100666,
    "no type": 0,
}

Case = Callable[[Files], bytes]


def _of_name(name: str) -> Case:
    return lambda files: build(resealed(files, [(name, b"escaped")]))


def _of_pair(pair: Files) -> Case:
    return lambda files: build(resealed(files, pair))


def _of_mode(mode: int) -> Case:
    return lambda files: build(
        [(name, b"/etc/passwd" if name == A_FILE else data) for name, data in files],
        change_central=_field(38, "<I", mode << 16),
    )


def _both(at: int, form: str, value: int) -> Case:
    """One field, the same in both headers; in the directory it lies two bytes further."""
    return lambda files: build(files, change_local=_field(at, form, value), change_central=_field(at + 2, form, value))


def _bomb(files: Files) -> bytes:
    return _zipfile(resealed(files, [("golden/bomb", bytes(20_000_000))]), compression=zipfile.ZIP_DEFLATED)


def _overlap(files: Files) -> bytes:
    """Two entries of the directory that share one file: the way to make a bomb without compression."""
    data = build(files)
    start = struct.unpack_from("<I", data, len(data) - 6)[0]
    directory = data[start:-22]
    return data[:start] + directory + directory + end_record(2 * len(files), 2 * len(directory), start)


def _quoted(files: Files) -> bytes:
    """A whole file, header and all, hidden in the data of another one."""
    inner = local_header("golden/hidden", 3, zlib.crc32(b"abc")) + b"abc"
    data = build(resealed(files, [("golden/outer", inner)]))
    at = data.index(inner)
    start = struct.unpack_from("<I", data, len(data) - 6)[0]
    directory = data[start:-22] + central_header("golden/hidden", 3, zlib.crc32(b"abc"), at)
    return data[:start] + directory + end_record(len(files) + 2, len(directory), start)


def _with_end(**fields: int) -> Case:
    places = {"disk": (4, "<H"), "start_disk": (6, "<H"), "here": (8, "<H"), "count": (10, "<H"), "size": (12, "<I")}
    places |= {"offset": (16, "<I"), "comment": (20, "<H")}

    def case(files: Files) -> bytes:
        data = bytearray(build(files))
        for name, value in fields.items():
            at, form = places[name]
            struct.pack_into(form, data, len(data) - 22 + at, value)
        return bytes(data)

    return case


def _zip64(files: Files) -> bytes:
    data = build(files)
    end, start = data[-22:], struct.unpack_from("<I", data, len(data) - 6)[0]
    size = len(data) - 22 - start
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(files), len(files), size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22, 1)
    return data[:-22] + record + locator + end[:8] + b"\xff" * 12 + end[20:]


def _descriptor(files: Files) -> bytes:
    """Streamed: sizes and CRC behind the data, flag bit 3."""

    class Sink(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    sink = Sink()
    with zipfile.ZipFile(sink, "w") as writer:  # type: ignore[call-overload]
        for name, content in files:
            writer.writestr(name, content)
    return sink.data


def _many(files: Files) -> bytes:
    count = zip_layout.MAX_ENTRIES + 1
    return build([*files, *((f"golden/{index}", b"") for index in range(count - len(files)))])


def _extra(at: str) -> Case:
    """An extra field (0x7875, Unix owner; a hard link's target in other fields) in one of the headers."""
    field = struct.pack("<2H", 0x7875, 4) + b"\x01\x00\x00\x00"

    def local(name: str, header: bytes) -> bytes:
        return header[:28] + struct.pack("<H", len(field)) + header[30:] + field if name == A_FILE else header

    def central(name: str, header: bytes) -> bytes:
        return header[:30] + struct.pack("<H", len(field)) + header[32:] + field if name == A_FILE else header

    if at == "local":
        return lambda files: build(files, change_local=local)
    return lambda files: build(files, change_central=central)


def _other_local_name(files: Files) -> bytes:
    """The directory says tokenizer.json, the header before the data says something else."""
    data = build(files)
    return data.replace(A_FILE.encode(), b"../../evil.txt", 1)


OTHERS: dict[str, Case] = {
    "bomb by ratio": _bomb,
    "bomb by count": _many,
    "bomb by overlap": _overlap,
    "file in a file": _quoted,
    "claims 4 GiB": _both(22, "<I", 0xFFFFFFFE),
    "claims nothing": _both(22, "<I", 0),
    "packed size differs": _both(18, "<I", 1),
    "compressed": lambda files: _zipfile(files, compression=zipfile.ZIP_DEFLATED),
    "bzip2": lambda files: _zipfile(files, compression=zipfile.ZIP_BZIP2),
    "lzma": lambda files: _zipfile(files, compression=zipfile.ZIP_LZMA),
    "unknown method": _both(8, "<H", 99),
    "says stored, is deflated": lambda files: build(
        files, body=lambda name, data: zlib.compress(data) if name == A_FILE else data
    ),
    "encrypted": _both(6, "<H", 1),
    "strong encryption": _both(6, "<H", 0x41),
    "masked headers": _both(6, "<H", 0x2000),
    "encrypted in one header": lambda files: build(files, change_local=_field(6, "<H", 1)),
    "UTF-8 flag": _both(6, "<H", 0x800),
    "data descriptor": _descriptor,
    "wrong CRC": _both(14, "<I", 0xDEADBEEF),
    "wrong CRC in one header": lambda files: build(files, change_local=_field(14, "<I", 0)),
    "two names": _other_local_name,
    "later version": _both(4, "<H", 63),
    "another date": _both(12, "<H", 0x5A21),
    "extra field before the data": _extra("local"),
    "extra field in the directory": _extra("central"),
    "ZIP64 sizes": lambda files: build(files, change_central=_field(20, "<I", 0xFFFFFFFF)),
    "ZIP64 end": _zip64,
    "offset elsewhere": lambda files: build(files, change_central=_field(42, "<I", 0)),
    "offset beyond the end": lambda files: build(files, change_central=_field(42, "<I", 0x7FFFFFFF)),
    "another disk": lambda files: build(files, change_central=_field(34, "<H", 1)),
    "text attribute": lambda files: build(files, change_central=_field(36, "<H", 1)),
    "made by another system": lambda files: build(files, change_central=_field(4, "<H", 20)),
    "bytes before": lambda files: b"#!/bin/sh\n" + build(files),
    "bytes behind": lambda files: build(files) + b"\n",
    "comment": lambda files: build(files)[:-2] + b"\x05\x00hello",
    "comment with an end record": lambda files: build(files)[:-2] + b"\x16\x00" + build([])[-22:],
    "two archives": lambda files: build(files) + build(files),
    "several disks": _with_end(disk=1, start_disk=1),
    "counts too few": _with_end(here=1, count=1),
    "counts too many": _with_end(here=200, count=200),
    "two counts": _with_end(here=1),
    "directory elsewhere": _with_end(offset=0),
    "directory too long": _with_end(size=0x7FFFFFFF),
    "nothing": lambda _: b"",
    "empty archive": lambda _: build([]),
    "no ZIP at all": lambda _: random.Random(5).randbytes(3000),
    "a gzip": lambda _: b"\x1f\x8b\x08" + bytes(100),
    "half": lambda files: build(files)[: len(build(files)) // 2],
    "no sums": lambda files: build([file for file in files if file[0] != "SHA256SUMS"]),
    "no manifest": lambda files: build([file for file in files if file[0] != "manifest.json"]),
    "unlisted file": lambda files: build([*files, ("golden/unlisted", b"x")]),
    "listed file absent": lambda files: build([file for file in files if file[0] != A_FILE]),
    "other content": lambda files: build([(name, data + b" " * (name == A_FILE)) for name, data in files]),
    "sums of 5 MB": lambda files: build([(n, b"x" * 5_000_000 if n == "SHA256SUMS" else d) for n, d in files]),
    "in a folder": lambda files: build([(f"bundle/{name}", data) for name, data in files]),
    "sums list themselves": lambda files: build(
        [(n, d + b"0" * 64 + b"  SHA256SUMS\n" if n == "SHA256SUMS" else d) for n, d in files]
    ),
    "signature of nonsense": lambda files: build([*files, ("signature", b"trust me")]),
    "manifest of nonsense": lambda files: build(
        resealed([file for file in files if file[0] != "manifest.json"], [("manifest.json", b"[" * 100_000)])
    ),
}

HOSTILE: dict[str, Case] = {
    **{f"name: {what}": _of_name(name) for what, name in NAMES.items()},
    **{f"names: {what}": _of_pair(pair) for what, pair in PAIRS.items()},
    **{f"mode: {what}": _of_mode(mode) for what, mode in MODES.items()},
    **OTHERS,
}
