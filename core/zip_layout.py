"""The one form of ZIP file that a bundle travels in, written and read back byte for byte.

Offsets and fields are those of PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. Of all that
the format allows, this much is used: entries one after the other from byte 0, stored without
compression, no extra fields, no comments, no data descriptors, no ZIP64, one fixed date and mode.

So every byte of every header follows from the entry's name, size, CRC-32 and offset. The reader
builds the header that the writer would have written and compares: there is nothing in an archive that
two programs could read in two ways, and nothing to decompress. Any ZIP program can unpack it.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from pocketlens.core.names import MAX_NAME_BYTES, name_fault, names_fault

__all__ = [
    "MAX_ARCHIVE_BYTES",
    "MAX_ENTRIES",
    "Entry",
    "LayoutFault",
    "central_header",
    "end_record",
    "local_header",
    "read_entries",
]

MAX_ARCHIVE_BYTES: Final = 2**32 - 2
"""Sizes and offsets have 32 bits; all ones would announce ZIP64."""
MAX_ENTRIES: Final = 10_000

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
_END_MAGIC: Final = b"PK\x05\x06"
_VERSION: Final = 20
_MADE_BY_UNIX: Final = 3 << 8 | _VERSION
_STORED: Final = 0
_DATE: Final = 1 << 5 | 1  # 1980-01-01, the first that the format knows
_ATTRIBUTES: Final = 0o100644 << 16  # a plain file, as st_mode
_FILE_TYPES: Final = {
    0o120000: "a link",
    0o040000: "a folder",
    0o020000: "a character device",
    0o060000: "a block device",
    0o010000: "a pipe",
    0o140000: "a socket",
}


class Entry(msgspec.Struct, frozen=True):
    """One file: its data are the `size` bytes at `offset` of the archive."""

    name: str
    size: int
    crc: int
    offset: int


class LayoutFault(Exception):
    """Internal: the archive is not in the one form; the message says where it differs."""


def local_header(name: str, size: int, crc: int) -> bytes:
    """Return the header before the data of a file."""
    text = name.encode("ascii")
    return _LOCAL.pack(_LOCAL_MAGIC, _VERSION, 0, _STORED, 0, _DATE, crc, size, size, len(text), 0) + text


def central_header(name: str, size: int, crc: int, header_offset: int) -> bytes:
    """Return the file's entry in the directory at the archive's end."""
    text = name.encode("ascii")
    sizes = (crc, size, size, len(text))
    return (
        _CENTRAL.pack(
            *(_CENTRAL_MAGIC, _MADE_BY_UNIX, _VERSION, 0, _STORED, 0, _DATE),
            *sizes,
            *(0, 0, 0, 0, _ATTRIBUTES, header_offset),
        )
        + text
    )


def end_record(count: int, size: int, offset: int) -> bytes:
    """Return the archive's last bytes: `count` entries, in a directory of `size` bytes at `offset`."""
    return _END.pack(_END_MAGIC, 0, 0, count, count, size, offset, 0)


def read_entries(stream: BinaryIO, archive_bytes: int) -> list[Entry]:
    """Return the entries of an archive in the one form.

    Reads the directory and the headers, not the data. Memory is bounded by `MAX_ENTRIES`.

    Args:
        stream: seekable.
        archive_bytes: its length.

    Raises:
        LayoutFault: anything else, at the first difference.
        OSError: the stream cannot be read.
    """
    directory, start, count = _directory(stream, archive_bytes)
    entries: list[Entry] = []
    position = 0
    for _ in range(count):
        name, size, crc, directory = _central_entry(directory, position)
        header = local_header(name, size, crc)
        stream.seek(position)
        if stream.read(len(header)) != header:
            raise LayoutFault(f"a header of {name} that differs from its entry in the directory")
        entries.append(Entry(name, size, crc, position + len(header)))
        position += len(header) + size
    if directory:
        raise LayoutFault("a directory with other entries than it counts")
    if position != start:
        raise LayoutFault("bytes between the last file and the directory, or files that overlap")
    if fault := names_fault(entry.name for entry in entries):
        raise LayoutFault(fault)
    return entries


def _directory(stream: BinaryIO, archive_bytes: int) -> tuple[bytes, int, int]:
    """Return the directory's bytes, its offset and the number of entries in it."""
    if archive_bytes > MAX_ARCHIVE_BYTES:
        raise LayoutFault(f"{archive_bytes:,} bytes, more than {MAX_ARCHIVE_BYTES:,}")
    if archive_bytes < _END.size:
        raise LayoutFault(f"{archive_bytes} bytes: too few")
    stream.seek(archive_bytes - _END.size)
    end = stream.read(_END.size)
    if not end.startswith(_END_MAGIC):
        raise LayoutFault("no end record at the end: truncated, or with a comment or other bytes behind it")
    _, _, _, _, count, size, start, _ = _END.unpack(end)
    if count == 0xFFFF or 0xFFFFFFFF in {size, start}:
        raise LayoutFault("an end record that refers to a ZIP64 one")
    if count > MAX_ENTRIES:
        raise LayoutFault(f"{count} files, more than {MAX_ENTRIES}")
    if size > count * (_CENTRAL.size + MAX_NAME_BYTES) or start + size + _END.size != archive_bytes:
        raise LayoutFault("an end record that puts the directory elsewhere, or bytes before or behind it")
    if end != end_record(count, size, start):
        raise LayoutFault("an end record with a comment, several disks or two counts")
    stream.seek(start)
    return stream.read(size), start, count


def _central_entry(directory: bytes, position: int) -> tuple[str, int, int, bytes]:
    """Return name, size, CRC and the rest of the directory; the entry must be the one for `position`."""
    if len(directory) < _CENTRAL.size or not directory.startswith(_CENTRAL_MAGIC):
        raise LayoutFault("a directory that ends early or holds something else than entries")
    fields = _CENTRAL.unpack_from(directory)
    crc, size, length = fields[7], fields[9], fields[10]
    text = directory[_CENTRAL.size : _CENTRAL.size + length]
    name = text.decode("latin-1")  # cannot fail, and leaves nothing beyond ASCII looking like ASCII
    if fault := name_fault(name):
        raise LayoutFault(f"a file called {name[:80]!r}: {fault}")
    expected = central_header(name, size, crc, position)
    if directory[: len(expected)] != expected:
        raise LayoutFault(next(_differences(name, fields, position)))
    return name, size, crc, directory[len(expected) :]


def _differences(name: str, fields: tuple[int, ...], position: int) -> Iterator[str]:
    """Yield why a directory entry is not the one that the writer would have written, the telling reasons first."""
    _, made_by, _, flags, method, _, _, _, packed, size, _, extra, comment, _, _, attributes, offset = fields
    if flags & 1:
        yield f"{name}, which is encrypted"
    if kind := _FILE_TYPES.get(attributes >> 16 & 0o170000):
        yield f"{name}, which is {kind}"
    if 0xFFFFFFFF in {packed, size, offset}:
        yield f"{name}, which has its size or place in a ZIP64 field"
    if method != _STORED:
        yield f"{name}, which is compressed (method {method})"
    if flags:
        yield f"{name}, which has the flags {flags:#06x}"
    if packed != size:
        yield f"{name}, which has two sizes, {packed} and {size}"
    if extra or comment:
        yield f"{name}, which has extra fields or a comment"
    if offset != position:
        yield f"{name} at byte {offset}, where byte {position} is next: a gap or an overlap"
    yield f"{name} with attributes {attributes:#x}, a date or a version ({made_by:#x}) of its own"
